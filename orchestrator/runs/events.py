"""The events of a run, in small files below its folder; goodput is computed from these files alone.

Each event has a kind, a time (seconds since 1970) and further fields. Times follow the order of events: no event is
earlier than one that was written before it, even if the wall clock was set back. The driver records
    launch: workers are about to be started; host, pid
    fault: an attempt ended early; text, preempted (whether a node was taken away, which is not a failure)
    restart: the next attempt after a fault; number, text
    resize: the run continues with a different number of workers; from, to, text
Rank 0 of the workers records
    begin: training begins; step, world_size, micro_batch_size
    skip: a bad step left weights and moments unchanged; step (counted from 0, like data and schedule), reason,
        grad_norm (null if not finite), samples (the first and the last of the step), command (that shows them)
    rollback: too many bad steps in a row; step (to which the run rolls back), from_step, data_steps (number of steps
        whose data is skipped from there on), samples (the first and the last of these), text; `begin` follows
    checkpoint: a checkpoint was committed; step, loss (`train/loss` of that step), seconds (that training waited),
        flush_seconds (from the step to the commit), training_seconds (spent in steps from `begin` to that step)
    save_failed: a checkpoint could not be written; step, text, seconds (that training waited)
    stop: the run ended early on a notice of termination, after a last checkpoint; step, signal, text
    end: the last step is done; step, seconds (since this attempt began), training_seconds
The rank on which a fault is injected records
    fault_injected: the fault is about to fire; fault (its kind), at_step, rank (all as configured), step (finished)
"""

import logging
import time

from orchestrator.distributed.runtime import Event
from orchestrator.errors import StorageError
from orchestrator.runs.event_files import EventFiles, event_id, newest_seconds
from orchestrator.runs.recorder import Recorder
from orchestrator.storage.store import Storage

log = logging.getLogger(__name__)
DRIVER_KINDS = frozenset({"launch", "fault", "restart", "resize"})
WORKER_KINDS = frozenset({"begin", "skip", "rollback", "checkpoint", "save_failed", "stop", "end"})
INJECTED = "fault_injected"


class EventLog(Recorder):
    """The events of one run, each written at once. A failure to write one is logged and does not stop the run.

    Rank 0 of the workers uses `EventWriter`, for which no step waits.

    Args:
        kinds: The kinds that this process writes; others are only displayed, or another process has written them.
    """

    def __init__(self, storage: Storage, run_folder: str, kinds: frozenset[str] = DRIVER_KINDS) -> None:
        self._storage, self._folder, self._kinds = storage, events_folder(run_folder), kinds
        self._clock = Clock()

    def record(self, event: Event) -> bool:
        """Write an event of this process's kinds; return whether it was written."""
        if event["kind"] not in self._kinds:
            return False
        try:
            # it follows what other processes have written before
            self._clock.follow(newest_seconds(self._storage, self._folder), self._clock.reading())
            timed = {"time": self._clock.time_at(self._clock.reading()), **event}
            EventFiles(self._storage, self._folder).add({event_id(timed): timed})
        except StorageError as error:
            log.warning("an event was not written: %s", error)
            return False
        return True

    def read(self, *kinds: str) -> list[Event]:
        """Return the events in order of time, all or only those of some kinds."""
        files = EventFiles(self._storage, self._folder)
        files.refresh(kinds)
        return [event for event in files.events if not kinds or event["kind"] in kinds]


def events_folder(run_folder: str) -> str:
    """Return the folder of a run's events."""
    return f"{run_folder}/events"


class Clock:
    """Seconds since 1970 that never go back: the wall clock is read once, and another clock counts from there."""

    def __init__(self) -> None:
        self._offset = time.time() - _elapsed()

    def reading(self) -> float:
        """Return the reading of the other clock."""
        return _elapsed()

    def time_at(self, reading: float) -> float:
        """Return the time at a reading."""
        return reading + self._offset

    def follow(self, seconds: float, reading: float) -> None:
        """Make a reading later than this time, if it is not."""
        self._offset += max(0.0, seconds + 1e-5 - self.time_at(reading))


def _elapsed() -> float:
    # the one of Linux goes on while a laptop sleeps
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
