"""Functions in place of child processes: counted, notified and killed as those are."""

import signal
import threading
from collections.abc import Callable
from typing import Any

from orchestrator.pipeline.child import Order


class FakeChildren:
    """Counts the children of a driver."""

    def __init__(self) -> None:
        self.started: list[str] = []
        """Names, in the order of their starts."""
        self.orders: list[Order] = []
        self.before: dict[str, Callable[[Any], int | None]] = {}
        """By name: what a child does first; an exit code ends it there."""
        self.most_at_once = 0
        self._running = 0
        self._lock = threading.Lock()

    def run_child(self, child: "FakeProcess") -> int:
        with self._lock:
            self.started.append(child.name)
            self.orders.append(child.order)
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        try:
            before = self.before.get(child.name)
            code = before(child) if before else None
            if code is None and not child.killed.is_set():
                child.finish()
            return -signal.SIGKILL if child.killed.is_set() else code or 0
        finally:
            with self._lock:
                self._running -= 1


class FakeProcess:
    """One function that runs as a child would."""

    def __init__(self, children: FakeChildren, order: Order, name: str) -> None:
        self.order, self.name, self._children = order, name, children
        self.killed, self.notified = threading.Event(), threading.Event()

    def wait(self) -> int:
        return self._children.run_child(self)

    def notify(self, number: int) -> None:
        self.notified.set()

    def kill(self) -> None:
        self.killed.set()

    def finish(self) -> None:
        """Write what the command of its order writes."""
        raise NotImplementedError
