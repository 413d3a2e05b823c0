"""Requested faults: how many times one must still fire, by the run's events, and a store that refuses saves."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.checkpoints.names import step_of
from orchestrator.configuration.faults import FaultsConfig
from orchestrator.runs.events import INJECTED, EventLog
from orchestrator.storage.store import Storage

T = TypeVar("T")


class FaultOrder:
    """The fault that a run was asked to inject into itself.

    Each injection is recorded as an event before it happens, so a run that was killed by one is not killed again.
    """

    def __init__(self, config: FaultsConfig, storage: Storage, run_folder: str) -> None:
        self.config = config
        self._events = EventLog(storage, run_folder, frozenset({INJECTED}))
        self._fields = {"fault": config.kind, "at_step": config.at_step, "rank": config.rank}

    def num_left(self) -> int:
        """Return how many times it must still fire; events of other faults do not count."""
        fired = sum(self._fields.items() <= event.items() for event in self._events.read(INJECTED))
        return max(0, self.config.times - fired)

    def count(self, step: int) -> bool:
        """Record an injection after `step` finished steps; False if not recorded, and the fault must not fire."""
        return self._events.record({"kind": INJECTED, **self._fields, "step": step})


class FailingStorage(Storage):
    """A store that refuses saves from `faults.at_step` on, as many as were requested.

    A save ends at its first failed write, so each save counts once. A transient error is raised in every attempt of
    that write. Only writes of the training process fail: the writer process opens the store by its URL.
    """

    def __init__(self, root: str, order: FaultOrder) -> None:
        super().__init__(root)
        self._order = order

    @property
    def is_shared(self) -> bool:
        """False: the store that a writer process opens by its URL would not refuse anything."""
        return False

    def local_path(self, name: str = "") -> Path | None:
        """None, as for a remote store, so that every write passes through this class."""
        return None

    def _run(self, verb: str, name: str, action: Callable[[Any, str], T]) -> T:
        return super()._run(verb, name, self._refuse if self._fires(verb, name) else action)

    def _fires(self, verb: str, name: str) -> bool:
        step, order = step_of(name), self._order
        if verb != "write" or step is None or step < order.config.at_step:
            return False
        return order.num_left() > 0 and order.count(step)

    def _refuse(self, fs: Any, path: str) -> Any:
        if self._order.config.kind == "full_disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        raise ConnectionResetError(errno.ECONNRESET, "the fault that was requested")


def damaged(data: bytes, kind: str) -> bytes:
    """Return the first half of `data`, or all of it with one bit flipped in the middle."""
    half = len(data) // 2
    if kind == "truncate_checkpoint":
        return data[:half]
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
