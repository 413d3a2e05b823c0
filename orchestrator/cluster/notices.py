"""What the driver does with notices of termination while workers run: passes them on, waits a while, and ends them."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.distributed.runtime import STOP_SIGNALS


@contextmanager
def passed_on(ask: Callable[[int], None], kill: Callable[[], None], grace_seconds: float) -> Iterator["Notices"]:
    """Ask the workers to stop at the first notice; kill them at a second Ctrl-C, or when the grace is over.

    Yields what has come until now, and whether the workers were killed.

    Args:
        ask: Tells the workers which signal has come; they save and end by themselves.
        kill: Ends them at once.
        grace_seconds: How long they have.
    """
    notices = Notices(ask, kill, grace_seconds)
    if threading.current_thread() is not threading.main_thread():
        yield notices
        return
    before = {number: signal.signal(number, notices.receive) for number in STOP_SIGNALS}
    try:
        yield notices
    finally:
        notices.timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


class Notices:
    """The notices that a driver has received while its workers run."""

    def __init__(self, ask: Callable[[int], None], kill: Callable[[], None], grace_seconds: float) -> None:
        self._ask, self._kill = ask, kill
        self.asked = 0
        """The first signal; 0 as long as none has come."""
        self.killed_after = 0
        """The signal after which the workers were killed; 0 as long as they were not."""
        self.timer = threading.Timer(grace_seconds, self._end)
        self.timer.daemon = True

    def receive(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = number
            self.timer.start()
            # on a thread of its own: a handler may not wait for a lock that the interrupted code holds
            threading.Thread(target=self._ask, args=(number,), daemon=True).start()
        elif number == signal.SIGINT:
            self._end()

    def _end(self) -> None:
        self.killed_after = self.asked
        self._kill()
