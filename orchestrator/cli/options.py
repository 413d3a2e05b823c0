"""The options that Hydra finds, listed once a process, since that takes long."""

import functools
from typing import TYPE_CHECKING

from orchestrator.cli.command import conf_folder

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

    from orchestrator.configuration.overrides import Groups


@functools.lru_cache(maxsize=1)  # a pipeline composes many commands with one Hydra, which takes long to list these
def options_of(hydra: "Hydra") -> dict[str, tuple[str, ...]]:
    """Return the options of every group but Hydra's own."""
    from hydra.core.object_type import ObjectType

    ours = [group for group in hydra.list_all_config_groups() if group.partition("/")[0] != "hydra"]
    return {group: tuple(sorted(hydra.config_loader.get_group_options(group, ObjectType.CONFIG))) for group in ours}


@functools.lru_cache(maxsize=16)  # a sweep composes one command many times
def groups_of(hydra: "Hydra", primary: str) -> "Groups":
    """Return the groups of a command, and the option that each starts with."""
    from hydra.types import RunMode

    from orchestrator.configuration.overrides import Groups

    choices = hydra.config_loader.compute_defaults_list(primary, [], RunMode.RUN).overrides.known_choices
    options = options_of(hydra)
    return Groups(
        chosen={group: choices[group] for group in options if group in choices},
        options=options,
        foreign=frozenset(group for group in options if group not in choices and (conf_folder() / group).is_dir()),
    )
