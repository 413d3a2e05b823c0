"""The options that Hydra finds, listed once a process."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.cli.command import conf_folder

if TYPE_CHECKING:
    from hydra._internal.config_repository import IConfigRepository
    from hydra._internal.hydra import Hydra

    from orchestrator.configuration.overrides import Groups


@functools.lru_cache(maxsize=1)  # a pipeline composes many commands with one Hydra
def options_of(hydra: "Hydra") -> dict[str, tuple[str, ...]]:
    """Return the options of every group but Hydra's own.

    Hydra's own lists copy all that it knows for each group, which took half of the time of reading a command line.
    """
    return dict(_options_below("", hydra.config_loader.repository))  # type: ignore[attr-defined]


def _options_below(parent: str, repository: "IConfigRepository") -> Iterator[tuple[str, tuple[str, ...]]]:
    from hydra.core.object_type import ObjectType

    for name in repository.get_group_options(parent, ObjectType.GROUP):
        group = f"{parent}/{name}" if parent else name
        if group == "hydra":
            continue
        if options := repository.get_group_options(group, ObjectType.CONFIG):
            yield group, tuple(sorted(options))
        yield from _options_below(group, repository)


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
