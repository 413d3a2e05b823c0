"""A worker's place in the run, whoever started it."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Notices of termination: the run is saved once more before it ends. The last two are what Slurm is asked to send."""
MOVE = 1
"""In place of a signal's number, and weaker than those: save and end, so that the run goes on with other workers."""


def ignore(event: Event) -> None:
    """Receive an event and do nothing."""


def nobody_asked() -> int:
    """Tell that no process outside asked the run to stop."""
    return 0


@dataclass(frozen=True)
class Runtime:
    """One worker's place in the run. MASTER_ADDR and MASTER_PORT are in its environment if there are several."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node_rank: int = 0
    device: str = "cpu"
    """`cpu` or `cuda:<index>`."""
    emit: Callable[[Event], None] = field(default=ignore, repr=False)
    """Sends an event to whoever shows progress; used by rank 0."""
    stop_asked: Callable[[], int] = field(default=nobody_asked, repr=False)
    """Gives the number of the signal by which another process asked the run to stop, `MOVE`, or 0."""
