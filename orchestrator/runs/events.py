"""The events of a run, one small file per event below its folder; goodput is computed from these files alone.

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

import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from orchestrator.distributed.runtime import Event
from orchestrator.errors import StorageError
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

log = logging.getLogger(__name__)
DRIVER_KINDS = frozenset({"launch", "fault", "restart", "resize"})
WORKER_KINDS = frozenset({"begin", "skip", "rollback", "checkpoint", "save_failed", "stop", "end"})
INJECTED = "fault_injected"
_NUM_READERS = 8


class EventLog:
    """The events of one run. A failure to write one is logged and does not stop the run.

    Args:
        kinds: The kinds that this process writes; others are only displayed, or another process has written them.
    """

    def __init__(self, storage: Storage, run_folder: str, kinds: frozenset[str] = WORKER_KINDS) -> None:
        self._storage, self._folder, self._kinds = storage, f"{run_folder}/events", kinds
        self._clock, self._has_recorded = _Clock(), False

    def record(self, event: Event) -> bool:
        """Write an event of this process's kinds; return whether it was written."""
        if event["kind"] not in self._kinds:
            return False
        try:
            # a worker's first event, and all of the driver's, follow what other processes have written before
            if not self._has_recorded or event["kind"] in DRIVER_KINDS:
                self._clock.follow(self._newest_seconds())
            now = self._clock.now()
            name = f"{int(now * 1e6):017d}-{event['kind']}-{secrets.token_hex(2)}.json"
            self._storage.write_bytes(f"{self._folder}/{name}", json.dumps({"time": now, **event}).encode())
            self._has_recorded = True
        except StorageError as error:
            log.warning("an event was not written: %s", error)
            return False
        return True

    def _newest_seconds(self) -> float:
        found = (re.match(r"(\d{17})-", name) for name in reversed(self._storage.list(self._folder)))
        return next((int(name[1]) / 1e6 for name in found if name), 0.0)

    def and_then(self, emit: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return a function that records an event and passes it on."""

        def record_and_emit(event: Event) -> None:
            self.record(event)
            emit(event)

        return record_and_emit

    def read(self, *kinds: str, last: tuple[str, int] | None = None) -> list[Event]:
        """Return the events in order of time, all or only those of some kinds; files of other kinds are not read.

        Args:
            last: A kind and a number: so many of the newest events of that kind, and no event before them.
        """
        found = (re.fullmatch(r"\d+-(\w+)-\w+\.json", name) for name in self._storage.list(self._folder))
        files = [name[0] for name in found if name and (not kinds or name[1] in kinds)]
        if last:
            starts = [number for number, name in enumerate(files) if f"-{last[0]}-" in name][-last[1] :]
            files = files[starts[0] :] if starts else files
        # a long run has thousands of events, and each read costs a round trip to a remote store
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            events = [*pool.map(self._read_one, files)]
        return [event for event in events if event is not None]

    def outline(self) -> list[Event]:
        """Return kind and time of each event in order of time, by one listing: no file is read."""
        found = (re.fullmatch(r"(\d+)-(\w+)-\w+\.json", name) for name in self._storage.list(self._folder))
        return [{"kind": name[2], "time": int(name[1]) / 1e6} for name in found if name]

    def _read_one(self, file: str) -> Event | None:
        """Return the event in a file; None if it is damaged, which is logged: the others still tell the most."""
        name = f"{self._folder}/{file}"
        try:
            event = json.loads(self._storage.read_bytes(name))
            if not isinstance(event, dict) or not {"kind", "time"} <= event.keys():
                raise ValueError("no event with a kind and a time")
        except NotFoundError:  # removed since it was listed
            return None
        except ValueError as error:
            log.warning("a damaged event was skipped: %s (%s)", self._storage.url(name), error)
            return None
        return event


class _Clock:
    """Seconds since 1970 that never go back: the wall clock is read once, and another clock counts from there."""

    def __init__(self) -> None:
        self._offset = time.time() - _elapsed()

    def now(self) -> float:
        return _elapsed() + self._offset

    def follow(self, seconds: float) -> None:
        """Go on after this time, if the clock is behind it."""
        self._offset += max(0.0, seconds + 1e-5 - self.now())


def _elapsed() -> float:
    # the one of Linux goes on while a laptop sleeps
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
