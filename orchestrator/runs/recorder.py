"""What keeps the events of a run: each may be passed on, and some are written in the background."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from orchestrator.distributed.runtime import Event


class Recorder(ABC):
    """Keeps events."""

    @abstractmethod
    def record(self, event: Event) -> object:
        """Keep an event, if it is of a kind that is kept here."""

    def and_then(self, emit: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return a function that records an event and passes it on."""

        def record_and_emit(event: Event) -> None:
            self.record(event)
            emit(event)

        return record_and_emit


class BackgroundRecorder(Recorder):
    """Keeps events and writes them on a thread of its own; what is left is written where its block ends."""

    def __init__(self, name: str) -> None:
        """Start nothing yet.

        Args:
            name: Of the thread.
        """
        self._changed = threading.Condition()
        self._is_closed = False
        """Set while `_changed` is held, and notified."""
        self._thread = threading.Thread(target=self._write_until_closed, name=name, daemon=True)

    @abstractmethod
    def _write_until_closed(self) -> None:
        """Write what is recorded, again and again."""

    @abstractmethod
    def _write(self) -> object:
        """Write what is recorded and not written yet."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self._write()
