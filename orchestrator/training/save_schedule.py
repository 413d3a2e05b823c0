"""After which steps a run is saved: every so many, or as often as the cost of a save and the rate of faults advise."""

from collections.abc import Callable, Sequence

from orchestrator.configuration.groups import CheckpointConfig
from orchestrator.distributed.collectives import from_rank_0
from orchestrator.distributed.runtime import Event
from orchestrator.planning.save_interval import young_seconds
from orchestrator.runs.goodput import goodput

FIRST_STEPS = 10
"""With `interval=auto` the first save, whose cost is measured, comes after so many steps."""
_UNSEEN_MTBF_SECONDS = 24 * 3600.0
"""Taken for a run that has seen no fault and is younger than this."""


def seen_mtbf_seconds(events: Sequence[Event]) -> float:
    """Return the mean time between the faults of a run, from its events."""
    num_faults = sum(event["kind"] == "fault" for event in events)
    wall_seconds = goodput(events).wall_seconds
    return wall_seconds / num_faults if num_faults else max(wall_seconds, _UNSEEN_MTBF_SECONDS)


class SaveSchedule:
    """Tells when a save is due; all ranks ask it alike.

    Args:
        seen_mtbf_seconds: Mean time between the faults of the run; asked once, with `interval=auto` alone and on rank 0
            alone, where the user has not given it.
    """

    def __init__(self, config: CheckpointConfig, seen_mtbf_seconds: Callable[[], float]) -> None:
        self._interval_steps = config.interval_steps if config.interval == "steps" else None
        self._mtbf_seconds, self._seen_mtbf_seconds = config.mtbf_seconds, seen_mtbf_seconds
        self._next_step: int | None = None
        self._cost_seconds = self._num_saves = 0.0

    def is_due(self, step: int) -> bool:
        """Whether a save follows the step just finished."""
        if self._interval_steps:
            return step % self._interval_steps == 0
        if self._next_step is None:
            self._next_step = step - 1 + FIRST_STEPS
        return step >= self._next_step

    def saved(self, step: int, cost_seconds: float, step_seconds: float) -> None:
        """Learn what a save has cost, and agree on the next one; rank 0's clock decides.

        Args:
            cost_seconds: Time that training has waited.
            step_seconds: Time that a step takes.
        """
        if self._interval_steps:
            return
        self._cost_seconds += cost_seconds
        self._num_saves += 1
        self._next_step = step + from_rank_0(lambda: self._steps_between(step_seconds))

    def _steps_between(self, step_seconds: float) -> int:
        if self._mtbf_seconds is None:
            self._mtbf_seconds = self._seen_mtbf_seconds()
        seconds = young_seconds(self._cost_seconds / self._num_saves, self._mtbf_seconds)
        return max(1, round(seconds / max(step_seconds, 1e-9)))
