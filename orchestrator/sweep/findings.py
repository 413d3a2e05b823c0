"""What a sweep has found: its best trial, and how each swept setting goes together with the metric."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import StatisticsError, correlation, fmean

from orchestrator.planning.choice import score_of
from orchestrator.sweep.trial import Outcome, State, Trial


def best(trials: Sequence[Trial], outcomes: Mapping[int, Outcome], metric: str) -> Trial | None:
    """Return the trial that is done and has the best last value; None if there is none."""
    values = _values(trials, outcomes, "done")
    known = [one for one in trials if one.number in values]
    return min(known, key=lambda one: score_of(metric, values[one.number]), default=None)


def learned(trials: Sequence[Trial], outcomes: Mapping[int, Outcome], metric: str) -> str:
    """Return one line: of each swept number its rank correlation with the metric, of each other setting its means.

    A trial that was stopped early counts with its last value, since it was stopped for being worse than others.
    """
    values = _values(trials, outcomes, "done", "stopped")
    known = [one for one in trials if one.number in values]
    if len(known) < 3:
        return f"{len(known)} trials have ended, too few to say what {metric} depends on"
    metrics = [values[one.number] for one in known]
    parts = [f"{name} {_relation([one.swept[name] for one in known], metrics)}" for name in known[0].swept]
    return f"rank correlation with {metric} over {len(known)} trials: {', '.join(parts)}"


def _values(trials: Sequence[Trial], outcomes: Mapping[int, Outcome], *states: State) -> dict[int, float]:
    found = {one.number: outcomes[one.number] for one in trials}
    values = {number: one.value for number, one in found.items() if one.state in states}
    return {number: value for number, value in values.items() if value is not None and math.isfinite(value)}


def _relation(settings: Sequence[str], metrics: Sequence[float]) -> str:
    try:
        return f"{correlation(_ranks([float(text) for text in settings]), _ranks(metrics)):+.2f}"
    except StatisticsError:  # all are the same
        return "unknown"
    except ValueError:  # words
        means = _means(settings, metrics)
        return "(means " + ", ".join(f"{name} {mean:.4g}" for name, mean in means.items()) + ")"


def _means(settings: Sequence[str], metrics: Sequence[float]) -> dict[str, float]:
    groups = defaultdict[str, list[float]](list)
    for setting, value in zip(settings, metrics, strict=True):
        groups[setting].append(value)
    return {name: fmean(values) for name, values in sorted(groups.items())}


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value; equal ones have the mean of their ranks."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
