"""The settings of a sweep and what it chooses from, read in Hydra's grammar."""

from collections.abc import Sequence
from typing import Any

from modules.config import Config
from orchestrator.cli.sweep import num_values, parsed
from orchestrator.configuration.composer import Composer
from orchestrator.configuration.mistakes import validated
from orchestrator.configuration.sweep import AnySweep, SweepConfig
from orchestrator.display import streams
from orchestrator.errors import ConfigError
from orchestrator.sweep.space import Interval, Items, Setting, Space


def run_trials(command: str, search: Any, texts: Sequence[str], composer: Composer) -> None:
    """Run the trials of a sweep, or go on with it.

    Args:
        command: What each trial runs.
        search: The settings of the sweep itself, as they are composed.
        texts: All other overrides, as they are typed.
        composer: Composes the configuration of each trial.
    """
    from orchestrator.commands import sweep

    config = settings(search)
    found = space(texts, config.method)
    streams.go_on_unread()
    sweep.run(config, command, found, composer)


def composed_trials(command: str, search: Any, texts: Sequence[str], composer: Composer) -> list[Config]:
    """Return the configuration of each trial; where they are not known before, of those that show all values.

    Raises:
        ConfigError: with every mistake in any of them, one line each.
    """
    config = settings(search)
    found = space(texts, config.method)
    configs, mistakes = list[Config](), list[str]()
    for trial in found.trials(config) or found.corners():
        try:
            configs.append(composer.compose(command, trial.words))
        except ConfigError as error:
            mistakes += str(error).splitlines()
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return configs


def settings(search: Any) -> SweepConfig:
    """Return the settings of a sweep.

    Raises:
        ConfigError: they have mistakes.
    """
    if search is None or (isinstance(search, dict) and "method" not in search):
        raise ConfigError("sweep: which kind is missing; add sweep=random, sweep=asha, sweep=optuna or sweep=grid")
    return validated({"sweep": search}, AnySweep).sweep


def space(texts: Sequence[str], method: str) -> Space:
    """Return what a sweep chooses from.

    Args:
        texts: The overrides, as they are typed.
        method: How the sweep chooses.

    Raises:
        ConfigError: it cannot be listed or drawn.
    """
    read = [parsed(text) for text in texts]
    swept = {number: override for number, override in enumerate(read) if override and override.is_sweep_override()}
    if not swept:
        raise ConfigError(f"sweep={method}: nothing is swept; give several values, as in run.seed=1,2,3")
    for number, override in swept.items():
        _check(texts[number], override, method)
    settings = [
        Setting(override.key_or_group, override.get_key_element(), at, _values(override))
        for at, override in swept.items()
    ]
    return Space(texts, settings)


def _check(text: str, override: Any, method: str) -> None:
    value = override.value()
    if getattr(value, "shuffle", False):
        raise ConfigError(f"{text}: shuffle() gives another order each time, and a sweep must go on as it began")
    if type(value).__name__ == "Glob":
        raise ConfigError(f"{text}: list the options, as in a,b")
    if override.is_interval_sweep():
        if method == "grid":
            raise ConfigError(f"{text}: an interval has no list of values; use sweep=random, or choice(a,b)")
        if value.start > value.end or ("log" in value.tags and value.start <= 0):
            raise ConfigError(f"{text}: must go from a lower to a higher value, both above 0 for tag(log, …)")
    elif num_values(override) < 1:
        raise ConfigError(f"{text}: has no value")


def _values(override: Any) -> Interval | Items:
    value = override.value()
    if override.is_interval_sweep():
        return Interval(value.start, value.end, "log" in value.tags)
    return Items(num_values(override), lambda at: _item(override, at), not override.is_choice_sweep())


def _item(override: Any, number: int) -> str:
    """Return one value of a choice or a range, as it is typed."""
    from hydra.core.override_parser.types import Transformer

    value = override.value()
    if override.is_choice_sweep():
        item = value.list[number]
        return item if isinstance(item, str) else str(Transformer.str(item))
    item = value.start + number * value.step
    return repr(item if isinstance(item, int) else float(f"{item:.12g}"))
