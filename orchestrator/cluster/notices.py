"""How the driver handles notices of termination while workers run: it forwards them, waits, then kills the workers."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.distributed.runtime import STOP_SIGNALS
from orchestrator.errors import exit_code


@contextmanager
def forward_notices(ask: Callable[[int], None], kill: Callable[[], None], grace_seconds: float) -> Iterator["Notices"]:
    """Ask the workers to stop at the first notice; kill them at a second Ctrl-C, or after the grace period.

    Yields the notices received so far, and whether the workers were killed.

    Args:
        ask: Forwards the signal to the workers, which save and end by themselves.
        kill: Kills them at once.
        grace_seconds: Time from the first notice until they are killed.
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
        self.received = 0
        """The first signal received; 0 before that."""
        self.killed_after = 0
        """The signal after which the workers were killed; 0 unless they were."""
        self.timer = threading.Timer(grace_seconds, self._end)
        self.timer.daemon = True

    def receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = number
            self.timer.start()
            # on a separate thread: a handler must not wait for a lock that the interrupted code holds
            threading.Thread(target=self._ask, args=(number,), daemon=True).start()
        elif number == signal.SIGINT:
            self._end()

    def _end(self) -> None:
        self.killed_after = self.received
        self._kill()


@contextmanager
def ended_after_grace(grace_seconds: float) -> Iterator[None]:
    """End this process if it trains itself and has not ended so long after its first notice.

    Python runs a signal handler between two of its instructions, and training may hang within one. So the notice is
    received on another thread, through the descriptor to which the interpreter writes each signal at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    is_over = threading.Event()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_after, args=(reading, grace_seconds, is_over), daemon=True, name="grace").start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(before)
        writing.close()  # ends the thread


def _end_after(notices: socket.socket, grace_seconds: float, is_over: threading.Event) -> None:
    with notices:
        while received := notices.recv(1):
            if received[0] not in STOP_SIGNALS:
                continue
            if not is_over.wait(grace_seconds):
                name = signal.Signals(received[0]).name
                text = f"error: {name}: not saved within checkpoint.grace_seconds={grace_seconds:g}; ended without"
                print(text, "a last checkpoint", file=sys.stderr, flush=True)  # noqa: T201
                os._exit(exit_code(received[0]))
            return
