"""The running children of a driver, whatever they work for: started, waited for, notified and killed."""

import signal
import threading
import time
from collections.abc import Callable, Mapping

from orchestrator.errors import LostNodeError, exit_code
from orchestrator.pipeline.child import Order, RunningChild
from orchestrator.pipeline.progress import Progress
from orchestrator.runs.lease import holder
from orchestrator.storage.store import Storage

POLL_SECONDS = 1.0


class Children:
    """Runs children, each on a thread of its own; a child whose node is lost is started on another.

    Args:
        start: Starts a child, on a thread that then waits for it.
        progress: How far each is, by name; a running child is kept there.
        max_lost_nodes: A child is started anew after so many lost nodes.
    """

    def __init__(
        self,
        start: Callable[[Order], RunningChild],
        progress: Mapping[str, Progress],
        max_lost_nodes: int,
    ) -> None:
        self._start, self._progress, self._max_lost_nodes = start, progress, max_lost_nodes
        self._lock = threading.Lock()
        self.stopping = 0
        """The signal with which all are being ended; 0 while none is."""

    def run(self, name: str, order: Order, before: Callable[[], None], on_lost: Callable[[LostNodeError], None]) -> int:
        """Run a child to its end, and return its exit code.

        Args:
            name: Whose child it is.
            order: What it is to do.
            before: Called before each start.
            on_lost: Called when a node is lost and another start follows.

        Raises:
            LostNodeError: one node too many was lost.
        """
        for number in range(self._max_lost_nodes + 1):
            before()
            with self._lock:
                if self.stopping:
                    break
                child = self._progress[name].child = self._start(order)
            try:
                return child.wait()
            except LostNodeError as error:
                if number == self._max_lost_nodes:
                    raise
                on_lost(error)
        return exit_code(self.stopping)

    def wait_for_run(self, storage: Storage, run_name: str, waiting: Callable[[Mapping[str, object]], None]) -> None:
        """Wait until no process of an earlier attempt trains a run any more; `waiting` gets who holds its lease."""
        while (held := holder(storage, run_name)) and not self.stopping:
            waiting(held)
            time.sleep(POLL_SECONDS)

    def end(self, number: int, wait: Callable[[], None]) -> None:
        """Pass a notice of termination on, and wait for all; whatever interrupts the wait kills them.

        Args:
            number: The signal.
            wait: Returns when all have ended.
        """
        with self._lock:
            self.stopping = number
        try:
            for one in self._progress.values():
                if one.child is not None:
                    one.child.notify(number)
            wait()
        except BaseException:
            self.kill_all()
            raise

    def kill(self, name: str) -> None:
        """End a child and all that it has started."""
        child = self._progress[name].child
        if child is not None:
            child.kill()

    def kill_all(self) -> None:
        """End all of them."""
        for name in self._progress:
            self.kill(name)


def termination(error: BaseException) -> int:
    """Return the signal by which children are ended after an error of their driver."""
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
