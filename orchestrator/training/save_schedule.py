"""After which steps a run is saved: at a fixed interval, or at one computed from the costs of saves and faults."""

from collections.abc import Callable, Sequence

from orchestrator.configuration.groups import CheckpointConfig
from orchestrator.distributed.collectives import from_rank_0
from orchestrator.distributed.runtime import Event
from orchestrator.planning.save_interval import young_seconds
from orchestrator.runs.goodput import wall_seconds

FIRST_STEPS = 10
"""With `interval=auto` the first save comes after this many steps; its cost is measured."""
_UNSEEN_MTBF_SECONDS = 24 * 3600.0
"""Assumed for a run without faults that is younger than this."""


def seen_mtbf_seconds(events: Sequence[Event] | None) -> float | None:
    """Return the mean time between the faults of a run; None if its events are not known yet."""
    if events is None:
        return None
    num_faults, seconds = sum(event["kind"] == "fault" for event in events), wall_seconds(events)
    return seconds / num_faults if num_faults else max(seconds, _UNSEEN_MTBF_SECONDS)


class SaveSchedule:
    """Decides when a save is due; all ranks use it in the same way.

    Args:
        also_due: Returns whether a save is due after a step for another reason than the interval.
        seen_mtbf_seconds: Returns the mean time between the faults of the run, or None if it is not known yet. Called
            on rank 0 until it is known, only with `interval=auto` and without `mtbf_seconds` in the configuration.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        seen_mtbf_seconds: Callable[[], float | None],
        also_due: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._also_due = also_due
        self._interval_steps = config.interval_steps if config.interval == "steps" else None
        self._mtbf_seconds, self._seen_mtbf_seconds = config.mtbf_seconds, seen_mtbf_seconds
        self._next_step: int | None = None
        self._cost_seconds = self._num_saves = 0.0

    def is_due(self, step: int) -> bool:
        """Whether to save after the step just finished."""
        if self._also_due(step):
            return True
        if self._interval_steps:
            return step % self._interval_steps == 0
        if self._next_step is None:
            self._next_step = step - 1 + FIRST_STEPS
        return step >= self._next_step

    def saved(self, step: int, cost_seconds: float, step_seconds: float) -> None:
        """Record the cost of a save, and agree on the next one by rank 0's clock.

        Args:
            cost_seconds: Time that training waited for it.
            step_seconds: Duration of a step.
        """
        if self._interval_steps:
            return
        self._cost_seconds += cost_seconds
        self._num_saves += 1
        self._next_step = step + from_rank_0(lambda: self._steps_between(step_seconds))

    def _steps_between(self, step_seconds: float) -> int:
        if self._mtbf_seconds is None:
            self._mtbf_seconds = self._seen_mtbf_seconds()
        mtbf_seconds = _UNSEEN_MTBF_SECONDS if self._mtbf_seconds is None else self._mtbf_seconds
        seconds = young_seconds(self._cost_seconds / self._num_saves, mtbf_seconds)
        return max(1, round(seconds / max(step_seconds, 1e-9)))
