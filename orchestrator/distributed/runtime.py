"""A worker's position in the run, independent of the launcher."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
_HANGUP_IS_NOTICE = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
"""False if this process was started with SIGHUP ignored, as `nohup` does, so that it outlives the terminal."""
STOP_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2),
    *([signal.SIGHUP] if _HANGUP_IS_NOTICE else []),
)
"""Notices of termination: the run saves once more before it ends. Slurm is asked to send SIGUSR1 or SIGUSR2."""
MOVE = -1
"""Used like a signal number, but weaker: save and end, so that the run continues with other workers."""


def strength(request: int) -> int:
    """Return what requests to stop are compared by: none (0), then `MOVE`, then signals by their number."""
    return 1 if request == MOVE else 2 * request


def request_of_strength(value: int) -> int:
    """Return the request that `strength` has made this value of."""
    return MOVE if value == 1 else value // 2


def ignore(event: Event) -> None:
    """Discard an event."""


def no_stop_requested() -> int:
    """Return 0: no other process has asked the run to stop."""
    return 0


@dataclass(frozen=True)
class Runtime:
    """One worker's position in the run. If there are several, MASTER_ADDR and MASTER_PORT are in its environment."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node_rank: int = 0
    device: str = "cpu"
    """`cpu` or `cuda:<index>`."""
    emit: Callable[[Event], None] = field(default=ignore, repr=False)
    """Sends an event to the progress display; used by rank 0."""
    stop_asked: Callable[[], int] = field(default=no_stop_requested, repr=False)
    """Returns the number of the signal with which another process asked the run to stop, `MOVE`, or 0."""
