"""The runs of a sweep, counted before they are listed."""

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.cli.hydra_errors import first_line
from orchestrator.errors import ConfigError, UserError

_MOST_SWEPT = 10_000
_OWN = re.compile(r"\+{0,2}sweep[.=]")


def is_own(text: str) -> bool:
    """Return whether an override is a setting of the sweep itself."""
    return _OWN.match(text) is not None


@functools.lru_cache(maxsize=4096)  # the trials of a sweep share most of their words
def parsed(text: str) -> Any:
    """Return the override that Hydra's grammar reads in `text`; None if it cannot be parsed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError):  # the latter two at numbers and nestings that are too long
        return None


def jobs(overrides: Sequence[str]) -> Sequence[Sequence[str]]:
    """Return the overrides of each run of a sweep.

    Raises:
        ConfigError: there is none, or there are too many to list, or Hydra cannot list them.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.errors import HydraException

    swept = [override for text in overrides if (override := parsed(text))]
    try:
        number = math.prod(map(num_values, swept))
        if not 0 < number <= _MOST_SWEPT:
            raise ConfigError(f"--multirun: these are {number:,} runs; a sweep has 1 to {_MOST_SWEPT:,}")
        return BasicSweeper.split_arguments(swept, None)[0]
    except HydraException as error:  # it handles some kinds of sweep alone
        raise ConfigError(f"--multirun: {first_line(error)}") from error


def checked_sweep_folder(overrides: Sequence[str]) -> bool:
    """Return whether a folder for the record of a sweep is set.

    Raises:
        UserError: it cannot be made.
    """
    folders = [text.partition("=")[2] for text in overrides if text.startswith("hydra.sweep.dir=")]
    try:
        for folder in folders:
            if "${" not in folder:
                Path(folder.strip("'\"")).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"hydra.sweep.dir={folders[-1]}: cannot be made ({error.strerror})") from None
    return bool(folders)


def num_values(override: Any) -> int:
    """Return how many runs of a sweep an override asks for, without listing them."""
    value = override.value()
    if override.is_range_sweep():
        return max(0, math.ceil((value.stop - value.start) / value.step)) if value.step else 0
    return len(value.list) if override.is_choice_sweep() else 1
