"""Trials that are suggested one after another, from what those before them have reached."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.planning.choice import score_of
from orchestrator.sweep.space import Interval, Space
from orchestrator.sweep.trial import Outcome, Trial


@dataclass(frozen=True)
class Tried:
    """A trial, as who suggests the next one needs it."""

    values: Mapping[str, float]
    """Of each setting, its value or its position."""
    is_running: bool
    score: float | None
    """What it has reached, less being better; None if it has diverged, or still runs."""


class Suggester(Protocol):
    """Decides what is tried next."""

    def suggest(self, number: int, tried: Sequence[Tried]) -> dict[str, float]:
        """Return a value, or its position, for each setting."""
        ...


@dataclass(frozen=True)
class Suggestions:
    """The trials of a sweep that are not known before it starts."""

    space: Space
    num_trials: int
    suggester: Suggester
    compose: Callable[[Trial], TrainingRunConfig]
    typical: TrainingRunConfig
    """The configuration of some trial, by which room for the next one is looked for."""

    def next(self, trials: Sequence[Trial], outcomes: Mapping[int, Outcome], metric: str) -> Trial:
        """Return the trial that follows `trials`."""
        tried = [_tried(one, outcomes[one.number], metric) for one in trials if outcomes[one.number].state != "failed"]
        return self.trial(len(trials), self.suggester.suggest(len(trials), tried))

    def trial(self, number: int, suggested: Mapping[str, float]) -> Trial:
        """Return a trial by its values, each rounded to what is typed."""
        made = self.space.trial(number, [suggested[one.name] for one in self.space.settings])
        are_typed = {one.name for one in self.space.settings if isinstance(one.values, Interval)}
        rounded = {name: float(made.swept[name]) if name in are_typed else value for name, value in suggested.items()}
        return replace(made, suggested=rounded)


def _tried(trial: Trial, outcome: Outcome, metric: str) -> Tried:
    is_running, value = outcome.state != "done", outcome.value
    has_ended_well = not is_running and value is not None and math.isfinite(value)
    return Tried(trial.suggested, is_running, score_of(metric, value) if has_ended_well and value is not None else None)
