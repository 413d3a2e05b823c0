"""The share of a run's time spent in steps that were kept, computed from its events alone."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.distributed.runtime import Event

_PAUSES = ("stop", "end")
"""After these events the run waits for its user until the next `launch`; that time does not count as lost."""


@dataclass(frozen=True)
class Goodput:
    """How a run's time was spent, in seconds."""

    wall_seconds: float
    """From the first launch to the last event, without the time between a stop or end and the next launch."""
    lasting_seconds: float
    """Spent in steps of the final loss curve, without lost or repeated steps, saves and validation."""
    stall_seconds: float
    """Time that training waited for saves."""
    recovery_seconds: tuple[float, ...]
    """For each fault, the time until training began again."""

    @property
    def fraction(self) -> float:
        return self.lasting_seconds / self.wall_seconds if self.wall_seconds else 0.0

    def metrics(self) -> dict[str, float]:
        """Return the values by metric name."""
        restarts = len(self.recovery_seconds)
        last = {"faults/recovery_seconds": self.recovery_seconds[-1]} if restarts else {}
        return {"goodput/fraction": self.fraction, "faults/restarts": restarts, **last}


def goodput(events: Sequence[Event]) -> Goodput:
    """Return the goodput of a run, computed from its events in order."""
    return Goodput(
        wall_seconds=wall_seconds(events),
        lasting_seconds=sum(_lasting_seconds(*attempt) for attempt in _attempts(events)),
        stall_seconds=sum(event["seconds"] for event in events if event["kind"] == "checkpoint"),
        recovery_seconds=tuple(_recoveries(events)),
    )


def last_recovery(events: Sequence[Event]) -> float | None:
    """Return the seconds from a fault to the newest `begin`; None without a fault since the `begin` before it.

    Args:
        events: The events of the kinds `fault` and `begin`, in order; other kinds may be left out.
    """
    begins = [number for number, event in enumerate(events) if event["kind"] == "begin"]
    since = begins[-2] if len(begins) > 1 else 0
    return next(iter(_recoveries(events[since:])), None)


def wall_seconds(events: Sequence[Event]) -> float:
    """Return the time from the first launch to the last event, without that between a stop or end and the next launch.

    Args:
        events: Kind and time of each, in order.
    """
    if not events:
        return 0.0
    waiting = [
        after["time"] - before["time"]
        for before, after in itertools.pairwise(events)
        if before["kind"] in _PAUSES and after["kind"] == "launch"
    ]
    return events[-1]["time"] - events[0]["time"] - sum(waiting)


def _attempts(events: Sequence[Event]) -> list[tuple[list[Event], int | None]]:
    """Return the events of each attempt, and the step at which the next one continued; None for the last."""
    begins = [number for number, event in enumerate(events) if event["kind"] == "begin"]
    stops = [*begins, len(events)][1:]
    return [
        (list(events[start:stop]), events[stop]["step"] if stop < len(events) else None)
        for start, stop in zip(begins, stops, strict=True)
    ]


def _lasting_seconds(attempt: Sequence[Event], continued_from: int | None) -> float:
    timed = [event for event in attempt if "training_seconds" in event]
    kept = [event for event in timed if continued_from is None or event["step"] <= continued_from]
    return max((event["training_seconds"] for event in kept), default=0.0)


def _recoveries(events: Sequence[Event]) -> list[float]:
    found, fault = [], None
    for event in events:
        if event["kind"] == "fault" and fault is None:
            fault = event["time"]
        elif event["kind"] == "begin" and fault is not None:
            found.append(event["time"] - fault)
            fault = None
    return found
