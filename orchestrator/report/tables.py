"""The tables of a report: final figures, settings that differ, where the time went, confusions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.configuration.schema import typed
from orchestrator.display.units import duration, percent
from orchestrator.distributed.runtime import Event
from orchestrator.report.sources import ReportedEvaluation, ReportedRun
from orchestrator.runs.state import RunState

_MOST_LABELS = 40
_NUM_CONFUSIONS = 20
_NOT_SETTINGS = ("run.name", "storage.root")
"""Differ between any two runs, or say nothing about them."""
_MOST_HAPPENINGS = 100


@dataclass(frozen=True)
class Happening:
    """A fault, a restart, a rollback or a skipped step."""

    time: str
    step: int | None
    """Where it is on the curve; None if the run did not go on."""
    text: str
    recovery: str = ""


@dataclass(frozen=True)
class Share:
    """What a part of a run's time went into."""

    what: str
    time: str
    percent: str
    fraction: float
    start: float
    """Fraction of the parts before it."""


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix."""

    count: int
    share: float
    """Of the examples of its label."""


def number(value: Any) -> str:
    """Return a figure as it is read in a table; empty if it is not known."""
    if value is None or isinstance(value, str):
        return value or ""
    if value == int(value) if abs(value) < 1e15 else False:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def figures(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return a row for each metric of any column; a figure that is not known is empty."""
    names = sorted({name for column in columns for name in column}, key=lambda name: (_rank(name), name))
    return [(name, [number(column.get(name)) for column in columns]) for name in names]


def _rank(name: str) -> int:
    groups = ("val", "train", "progress", "throughput", "goodput", "faults", "checkpoint", "optimizer", "memory")
    group = name.partition("/")[0]
    return groups.index(group) + 1 if group in groups else 0


def differences(runs: Sequence[ReportedRun]) -> list[tuple[str, list[str]]]:
    """Return the settings that are not the same in all runs; one that a run does not have is empty."""
    names = sorted({name for run in runs for name in run.settings} - set(_NOT_SETTINGS))
    rows = [(name, [_setting(run, name) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _setting(run: ReportedRun, name: str) -> str:
    return typed(run.settings[name]) if name in run.settings else ""


def happenings(state: RunState) -> list[Happening]:
    """Return what went wrong in a run and how it went on, in order."""
    found: list[Happening] = []
    fault: Event | None = None
    for event in state.events:
        kind = event["kind"]
        if kind == "fault":
            found += [] if fault is None else [_happening(fault, None)]
            fault = event
        elif kind == "begin" and fault is not None:
            found.append(_happening(fault, event))
            fault = None
        elif kind == "begin" and event["step"]:
            found.append(Happening(moment(event["time"]), event["step"], "continued"))
        elif kind == "skip":
            found.append(Happening(moment(event["time"]), event["step"] + 1, f"step skipped: {event.get('reason')}"))
        elif kind == "rollback":
            found.append(Happening(moment(event["time"]), event["step"], str(event.get("text", "rolled back"))))
    found += [] if fault is None else [_happening(fault, None)]
    return found[-_MOST_HAPPENINGS:]


def _happening(fault: Event, begin: Event | None) -> Happening:
    if begin is None:
        return Happening(moment(fault["time"]), None, str(fault["text"]))
    return Happening(moment(fault["time"]), begin["step"], str(fault["text"]), duration(begin["time"] - fault["time"]))


def time_shares(state: RunState) -> list[Share]:
    """Return what a run's time went into; empty if nothing is known of it."""
    goodput = state.goodput
    seconds = {
        "steps that count": goodput.lasting_seconds,
        "waiting for checkpoints": goodput.stall_seconds,
        "start": _start_seconds(state.events),
        "from a fault until training began again": sum(goodput.recovery_seconds),
    }
    rest = goodput.wall_seconds - sum(seconds.values())
    seconds["validation, samples, export, and steps that were lost"] = max(0.0, rest)
    total, start, shares = sum(seconds.values()), 0.0, []
    for what, taken in seconds.items():
        if taken > 0:
            shares.append(Share(what, duration(taken), percent(taken / total), taken / total, start))
            start += taken / total
    return shares


def _start_seconds(events: Sequence[Event]) -> float:
    """Return the time from each launch to the next `begin`, without those that are a recovery from a fault."""
    seconds, launch = 0.0, None
    for event in events:
        if event["kind"] == "launch":
            launch = event["time"]
        elif event["kind"] == "fault":
            launch = None
        elif event["kind"] == "begin" and launch is not None:
            seconds, launch = seconds + event["time"] - launch, None
    return seconds


def confusion_cells(evaluation: ReportedEvaluation) -> list[tuple[str, list[Cell]]]:
    """Return a row of cells for each label; empty if there is no matrix, or it has too many labels for a page."""
    if len(evaluation.labels) > _MOST_LABELS:
        return []
    return [
        (label, [Cell(count, count / max(1, sum(row))) for count in row])
        for label, row in zip(evaluation.labels, evaluation.confusion, strict=False)
    ]


def worst_confusions(evaluation: ReportedEvaluation) -> list[tuple[str, str, int]]:
    """Return label, what was taken for it, and how often, the most frequent mistakes first."""
    if len(evaluation.labels) <= _MOST_LABELS:
        return []
    mistakes = [
        (evaluation.labels[row], evaluation.labels[column], count)
        for row, counts in enumerate(evaluation.confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:_NUM_CONFUSIONS]


def moment(seconds: float) -> str:
    """Return a time in words."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
