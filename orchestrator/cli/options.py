"""The options that Hydra finds, listed once a process, since that takes long."""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra


@functools.lru_cache(maxsize=1)  # a pipeline composes many commands with one Hydra, which takes long to list these
def options_of(hydra: "Hydra") -> dict[str, tuple[str, ...]]:
    """Return the options of every group but Hydra's own."""
    from hydra.core.object_type import ObjectType

    ours = [group for group in hydra.list_all_config_groups() if group.partition("/")[0] != "hydra"]
    return {group: tuple(sorted(hydra.config_loader.get_group_options(group, ObjectType.CONFIG))) for group in ours}


@functools.lru_cache(maxsize=16)  # a sweep composes one command many times
def known_choices(hydra: "Hydra", primary: str) -> dict[str, str | None]:
    """Return the option that each group of a command starts with."""
    from hydra.types import RunMode

    return hydra.config_loader.compute_defaults_list(primary, [], RunMode.RUN).overrides.known_choices
