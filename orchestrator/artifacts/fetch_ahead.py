"""Threads that fetch what is read next, in the order in which it is read, so that nobody waits for it."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
NUM_THREADS = 4
_ROOM_SHARE = 4
"""A thread is started when this part of the bytes is free; one for each key that is read would slow the reader down."""
Key = TypeVar("Key")


class FetchAhead(Generic[Key]):
    """Fetches the keys of plans, up to a number of bytes that were not yet read.

    The threads end when there is nothing to fetch, so that none waits for work.
    """

    def __init__(
        self, fetch: Callable[[Key], None], is_there: Callable[[Key], bool], size: Callable[[Key], int], max_bytes: int
    ) -> None:
        """Set up without a plan.

        Args:
            fetch: Fetches what belongs to a key, if it is not there.
            is_there: Returns whether it need not be fetched; asked once, when a key is planned.
            size: Returns the bytes of a key.
            max_bytes: Bytes that are fetched before they are read, but at least one key.
        """
        self._fetch, self._is_there, self._size, self._max_bytes = fetch, is_there, size, max_bytes
        self._lock, self._pulling = threading.Lock(), threading.Lock()
        self._plans: dict[int, Iterator[Key]] = {}
        self._ahead: dict[Key, int] = {}
        self._waiting: dict[Key, None] = {}
        self._num_threads = self._num_bytes = 0

    def plan(self, reader: object, keys: Iterable[Key]) -> None:
        """Forget a reader's plan, and fetch these keys in their order; taken from the iterable as there is room."""
        with self._lock:
            for key in [key for key, of in self._ahead.items() if of == id(reader)]:
                self._drop(key)
            self._plans[id(reader)] = iter(keys)
        self._start()

    def used(self, key: Key) -> None:
        """Take note that a key was read."""
        if key not in self._ahead:
            return
        with self._lock:
            self._drop(key)
            has_room = self._plans and self._max_bytes - self._num_bytes >= self._max_bytes // _ROOM_SHARE
            if not has_room and not self._waiting:
                return
        self._start()

    def planned(self) -> set[Key]:
        """Return the keys that are read next."""
        with self._lock:
            return set(self._ahead)

    def _drop(self, key: Key) -> None:
        if self._ahead.pop(key, None) is not None:
            self._num_bytes -= self._size(key)
            self._waiting.pop(key, None)

    def _start(self) -> None:
        with self._lock:
            has_work = self._waiting or (self._plans and self._num_bytes < self._max_bytes)
            if not has_work or self._num_threads >= NUM_THREADS:
                return
            self._num_threads += 1
        threading.Thread(target=self._run, daemon=True, name="fetch-ahead").start()

    def _run(self) -> None:
        try:
            while (key := self._take()) is not None:
                self._start()
                self._fetch(key)
        except Exception as error:
            # whoever reads the key meets the error as well, and says it
            log.debug("fetching ahead: %s", error)
        finally:
            with self._lock:
                self._num_threads -= 1

    def _take(self) -> Key | None:
        with self._pulling:
            self._pull()
        with self._lock:
            key = next(iter(self._waiting), None)
            if key is not None:
                del self._waiting[key]
            return key

    def _pull(self) -> None:
        """Take keys from the plans; not under the lock, because a plan may have to read how a file is divided."""
        while self._plans and self._num_bytes < self._max_bytes:
            reader, keys = next(iter(self._plans.items()))
            key = next(keys, None)
            is_there = key is not None and key not in self._ahead and self._is_there(key)
            with self._lock:
                if key is None:
                    if self._plans.get(reader) is keys:
                        del self._plans[reader]
                elif key not in self._ahead:
                    self._ahead[key] = reader
                    if not is_there:
                        self._waiting[key] = None
                    self._num_bytes += self._size(key)
