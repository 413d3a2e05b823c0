"""The trials of a sweep, read in Hydra's grammar: each one is a function of the seed and its number."""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

from orchestrator.cli.sweep import num_values, parsed
from orchestrator.configuration.composer import Composer
from orchestrator.configuration.mistakes import validated
from orchestrator.configuration.sweep import MOST_TRIALS, AnySweep, SweepConfig
from orchestrator.display import streams
from orchestrator.errors import ConfigError
from orchestrator.sweep.trial import Trial

_DIGITS = 6
"""Of a drawn number: enough to tell trials apart, and readable."""


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
    found = trials(texts, config)
    streams.go_on_unread()
    sweep.run(config, command, texts, found, composer)


def settings(search: Any) -> SweepConfig:
    """Return the settings of a sweep.

    Raises:
        ConfigError: they have mistakes.
    """
    if search is None or (isinstance(search, dict) and "method" not in search):
        raise ConfigError("sweep: which kind is missing; add sweep=random, sweep=asha, sweep=optuna or sweep=grid")
    return validated({"sweep": search}, AnySweep).sweep


def trials(texts: Sequence[str], config: SweepConfig) -> list[Trial]:
    """Return the trials of a sweep.

    Args:
        texts: The overrides, as they are typed.
        config: The settings of the sweep.

    Raises:
        ConfigError: they cannot be listed or drawn.
    """
    read = [parsed(text) for text in texts]
    swept = {number: override for number, override in enumerate(read) if override and override.is_sweep_override()}
    if not swept:
        raise ConfigError(f"sweep={config.method}: nothing is swept; give several values, as in run.seed=1,2,3")
    for number, override in swept.items():
        _check(texts[number], override, config)
    rows = _grid(swept) if config.method == "grid" else _drawn(swept, config)
    return [_trial(number, texts, swept, row) for number, row in enumerate(rows)]


def _check(text: str, override: Any, config: SweepConfig) -> None:
    value = override.value()
    if getattr(value, "shuffle", False):
        raise ConfigError(f"{text}: shuffle() gives another order each time, and a sweep must go on as it began")
    if type(value).__name__ == "Glob":
        raise ConfigError(f"{text}: list the options, as in a,b")
    if override.is_interval_sweep():
        if config.method == "grid":
            raise ConfigError(f"{text}: an interval has no list of values; use sweep=random, or choice(a,b)")
        if value.start > value.end or ("log" in value.tags and value.start <= 0):
            raise ConfigError(f"{text}: must go from a lower to a higher value, both above 0 for tag(log, …)")
    elif num_values(override) < 1:
        raise ConfigError(f"{text}: has no value")


def _grid(swept: dict[int, Any]) -> list[tuple[str, ...]]:
    number = math.prod(map(num_values, swept.values()))
    if number > MOST_TRIALS:
        raise ConfigError(f"--multirun: these are {number:,} runs; a sweep has 1 to {MOST_TRIALS:,}")
    return list(
        itertools.product(*([_item(override, at) for at in range(num_values(override))] for override in swept.values()))
    )


def _drawn(swept: dict[int, Any], config: SweepConfig) -> list[tuple[str, ...]]:
    return [
        tuple(
            _draw(override, random.Random(f"{config.seed}/{number}/{override.key_or_group}"))
            for override in swept.values()
        )
        for number in range(config.num_trials or 0)
    ]


def _draw(override: Any, generator: random.Random) -> str:
    value = override.value()
    if not override.is_interval_sweep():
        return _item(override, generator.randrange(num_values(override)))
    if "log" in value.tags:
        drawn = math.exp(generator.uniform(math.log(value.start), math.log(value.end)))
    else:
        drawn = generator.uniform(value.start, value.end)
    if isinstance(value.start, int) and isinstance(value.end, int):
        low = value.start
        return str(generator.randint(low, value.end) if "log" not in value.tags else max(low, round(drawn)))
    return repr(min(max(float(f"{drawn:.{_DIGITS}g}"), value.start), value.end))


def _item(override: Any, number: int) -> str:
    """Return one value of a choice or a range, as it is typed."""
    from hydra.core.override_parser.types import Transformer

    value = override.value()
    if override.is_choice_sweep():
        item = value.list[number]
        return item if isinstance(item, str) else str(Transformer.str(item))
    item = value.start + number * value.step
    return repr(item if isinstance(item, int) else float(f"{item:.12g}"))


def _trial(number: int, texts: Sequence[str], swept: dict[int, Any], values: tuple[str, ...]) -> Trial:
    chosen = dict(zip(swept, values, strict=True))
    words = [f"{swept[at].get_key_element()}={chosen[at]}" if at in chosen else text for at, text in enumerate(texts)]
    return Trial(number, tuple(words), {swept[at].key_or_group: value for at, value in chosen.items()})
