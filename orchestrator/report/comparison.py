"""Runs beside one another: in the order of the figure that decides, with the settings in which they differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.planning.choice import score_of
from orchestrator.report.sources import ReportedRun
from orchestrator.report.tables import differences, number

_DECIDING = ("val/macro_f1", "val/accuracy", "val/loss", "val/loss_clm", "val/loss_mlm", "train/loss")
"""The first one that half of the runs have decides: a trial that failed early has none of a validation."""
_MOST_SETTINGS = 12
"""Runs that differ in more are not variants of one another; their settings are a table of their own."""


@dataclass(frozen=True)
class Comparison:
    """A table with a row for each run, the best one first."""

    metric: str
    """The figure by which the rows are in order; empty if no run has one."""
    settings: list[str]
    rows: list[tuple[int, str, list[str]]]
    """The run by its number, its figure, and its value of each setting."""


def comparison(runs: Sequence[ReportedRun]) -> Comparison | None:
    """Return the table of runs of one command that differ in some settings; None of others."""
    rows = differences(runs)
    if not 0 < len(rows) <= _MOST_SETTINGS or len({run.command for run in runs}) > 1:
        return None
    metric = deciding(runs)
    values = [[values[place] for _, values in rows] for place in range(len(runs))]
    return Comparison(
        metric or "",
        [name for name, _ in rows],
        [(place, number(runs[place].metrics.get(metric or "")), values[place]) for place in best_first(runs)],
    )


def best_first(runs: Sequence[ReportedRun]) -> list[int]:
    """Return the places of runs in the order of the figure that decides; those without it come last."""
    metric = deciding(runs)
    return sorted(range(len(runs)), key=lambda place: (_score(runs[place], metric), place))


def deciding(runs: Sequence[ReportedRun]) -> str | None:
    """Return the figure by which runs are compared; None if no run has one."""
    given = [str(name) for run in runs if (name := run.settings.get("finetune.metric"))]
    counts = {name: sum(name in run.metrics for run in runs) for name in (*given, *_DECIDING)}
    of_half = [name for name, count in counts.items() if 2 * count >= len(runs)]
    return next(iter(of_half or [name for name, count in counts.items() if count]), None)


def _score(run: ReportedRun, metric: str | None) -> float:
    value = run.metrics.get(metric or "")
    return math.inf if value is None or math.isnan(value) else score_of(metric or "", value)
