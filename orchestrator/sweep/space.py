"""What a sweep chooses from, and the trial that each choice makes."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.configuration.sweep import MOST_TRIALS, SweepConfig
from orchestrator.errors import ConfigError
from orchestrator.sweep.trial import Trial

_DIGITS = 6
"""Of a drawn number: enough to tell trials apart, and readable."""
_MOST_CHECKED = 100
"""Of the values of one setting, before anything starts."""


@dataclass(frozen=True)
class Interval:
    """All numbers between two, or all whole ones if both are whole."""

    start: float
    end: float
    is_log: bool

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return isinstance(self.start, int) and isinstance(self.end, int)

    @property
    def corners(self) -> list[float]:
        """The values that are checked for all of them."""
        return [self.start, self.end]

    def text(self, value: float) -> str:
        """Return a value as it is typed."""
        if self.is_whole:
            return str(min(max(round(value), round(self.start)), round(self.end)))
        return repr(min(max(float(f"{value:.{_DIGITS}g}"), self.start), self.end))

    def draw(self, generator: random.Random) -> float:
        """Return one of its values."""
        if self.is_log:
            return math.exp(generator.uniform(math.log(self.start), math.log(self.end)))
        if self.is_whole:
            return generator.randint(round(self.start), round(self.end))
        return generator.uniform(self.start, self.end)


@dataclass(frozen=True)
class Items:
    """So many values, each known by its position."""

    number: int
    at: Callable[[int], str]
    """Returns a value as it is typed."""
    is_ordered: bool
    """A range, and no choice."""

    @property
    def corners(self) -> list[float]:
        """The values that are checked for all of them."""
        return list(range(self.number)) if self.number <= _MOST_CHECKED else [0, self.number - 1]

    def text(self, value: float) -> str:
        """Return the value at a position."""
        return self.at(round(value))

    def draw(self, generator: random.Random) -> float:
        """Return a position."""
        return generator.randrange(self.number)


@dataclass(frozen=True)
class Setting:
    """One swept setting."""

    name: str
    word: str
    """What stands before its value on the command line."""
    at: int
    """The place of that word."""
    values: Interval | Items


@dataclass(frozen=True)
class Space:
    """The overrides of a sweep, as they are typed, and the settings that are swept in them."""

    texts: Sequence[str]
    settings: Sequence[Setting]

    def trials(self, config: SweepConfig) -> list[Trial]:
        """Return the trials of a sweep that are known before it starts; a drawn one depends on seed and number alone.

        Raises:
            ConfigError: there are too many.
        """
        if config.method == "optuna":
            return []
        rows = self._grid() if config.method == "grid" else self._drawn(config.num_trials or 0, config.seed)
        return [self.trial(number, row) for number, row in enumerate(rows)]

    def trial(self, number: int, values: Sequence[float]) -> Trial:
        """Return the trial with a value, or its position, for each of the settings."""
        typed = {one.at: one.values.text(value) for one, value in zip(self.settings, values, strict=True)}
        words = list(self.texts)
        for one in self.settings:
            words[one.at] = f"{one.word}={typed[one.at]}"
        return Trial(number, tuple(words), {one.name: typed[one.at] for one in self.settings})

    def corners(self) -> Iterator[Trial]:
        """Yield a trial for each value, or each end of an interval, beside the first values of all other settings."""
        first = [one.values.corners[0] for one in self.settings]
        rows = {tuple(first): None}
        for at, one in enumerate(self.settings):
            rows |= {(*first[:at], value, *first[at + 1 :]): None for value in one.values.corners}
        for number, row in enumerate(rows):
            yield self.trial(number, row)

    def _grid(self) -> Iterator[tuple[float, ...]]:
        sizes = [one.values.number for one in self.settings if isinstance(one.values, Items)]
        number = math.prod(sizes)
        if number > MOST_TRIALS:
            raise ConfigError(f"--multirun: these are {number:,} runs; a sweep has 1 to {MOST_TRIALS:,}")
        return itertools.product(*map(range, sizes))

    def _drawn(self, number: int, seed: int) -> Iterator[tuple[float, ...]]:
        for at in range(number):
            yield tuple(one.values.draw(random.Random(f"{seed}/{at}/{one.name}")) for one in self.settings)
