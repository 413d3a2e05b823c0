"""The process that local workers are forked from: it imports what they need once, and hears no notice of termination.

Slurm and systemd send theirs to every process of a run, and without this one the driver loses sight of its workers,
which have to save first.
"""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker

from orchestrator.distributed.runtime import STOP_SIGNALS

_WORKERS_NEED = ["orchestrator.training.train", "modules.pretraining", "torch._dynamo"]


def start() -> None:
    """Start it beside this process; it is deaf from its first moment, since a child blocks what its parent does."""
    multiprocessing.set_forkserver_preload(_WORKERS_NEED)
    try:
        for process in (resource_tracker, forkserver):  # the second starts the first, which unblocks SIGTERM and SIGINT
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            process.ensure_running()
    finally:
        unblock_notices()


def unblock_notices() -> None:
    """Receive notices of termination, in a worker that was forked from it too: also those that came before."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
