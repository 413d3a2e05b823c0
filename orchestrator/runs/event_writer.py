"""Rank 0's events, written in the background: no step waits for the store."""

import logging
import threading

from orchestrator.distributed.runtime import Event
from orchestrator.errors import StorageError
from orchestrator.runs.event_files import EventFiles, event_id
from orchestrator.runs.events import WORKER_KINDS, Clock
from orchestrator.runs.recorder import BackgroundRecorder

log = logging.getLogger(__name__)
RETRY_SECONDS = 15.0


class EventWriter(BackgroundRecorder):
    """Records the events of one attempt. A failure to write is logged and tried again, and does not stop the run.

    What is recorded while a write goes on is written by the next one, as one file; if the process is killed before,
    it is lost. The events of earlier attempts are read once, at the start.

    Args:
        files: The files of the run's events.
        retry_seconds: How long it waits after a failure, unless there is another event.
    """

    def __init__(self, files: EventFiles, retry_seconds: float = RETRY_SECONDS) -> None:
        super().__init__("events")
        self._files, self._retry_seconds = files, retry_seconds
        self._clock = Clock()
        self._recorded: list[tuple[float, Event]] = []
        """Each with the clock's reading when it happened."""
        self._num_written = 0
        self._is_opened = False
        self._writing = threading.RLock()

    def record(self, event: Event) -> None:
        """Record an event of a worker's kinds; return at once, unless it is the last one of this attempt."""
        if event["kind"] not in WORKER_KINDS:
            return
        with self._changed:
            self._recorded.append((self._clock.reading(), event))
            self._changed.notify()
        if event["kind"] in ("stop", "end"):
            self._write()

    def so_far(self) -> list[Event] | None:
        """Return the run's events, those of earlier attempts as they were at the start; None until they are read."""
        if not self._is_opened:
            return None
        recorded = [self._timed(*one) for one in self._recorded]
        return [*self._earlier, *recorded]

    def all(self) -> list[Event]:
        """Return all events of the run, also those that other processes have written since, and merge their files."""
        with self._writing:
            self._write()
            self._files.refresh()
            found = self._files.events
            self._files.merge(into_one=True)
        return found

    def _write_until_closed(self) -> None:
        is_written = self._write()
        while not self._is_closed:
            with self._changed:
                if is_written:
                    self._changed.wait_for(lambda: self._num_written < len(self._recorded) or self._is_closed)
                elif not self._is_closed:
                    self._changed.wait(self._retry_seconds)
            is_written = self._is_closed or self._write()  # the last write is that of `__exit__`

    def _write(self) -> bool:
        """Write what is recorded; return whether that succeeded."""
        with self._writing:
            try:
                self._open()
                count = len(self._recorded)
                events = [self._timed(*one) for one in self._recorded[self._num_written : count]]
                if events:
                    self._files.add({event_id(event): event for event in events})
                    self._num_written = count
                    self._files.merge()
            except StorageError as error:
                log.warning("events were not written, and will be tried again: %s", error)
                return False
        return True

    def _open(self) -> None:
        """Read the events of earlier attempts, which all were before those of this one."""
        if not self._is_opened:
            self._files.refresh()
            self._earlier = self._files.events
            first = self._recorded[0][0] if self._recorded else self._clock.reading()
            self._clock.follow(self._files.newest_seconds, first)
            self._is_opened = True

    def _timed(self, reading: float, event: Event) -> Event:
        return {"time": self._clock.time_at(reading), **event}
