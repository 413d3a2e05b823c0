"""The process from which local workers are forked: it imports once what they need, and blocks notices of termination.

Slurm and systemd send these notices to every process of a run. Without this process the driver loses track of its
workers, which have to save first.
"""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker

from orchestrator.distributed.runtime import STOP_SIGNALS

_PRELOADED = "orchestrator.cluster.preloaded"


def start() -> None:
    """Start it beside this process, unless it has been; it inherits the signal mask, and so blocks the notices."""
    multiprocessing.set_forkserver_preload([_PRELOADED])
    try:
        # the fork server would start the resource tracker, and that unblocks SIGTERM and SIGINT
        for process in (resource_tracker, forkserver):
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            process.ensure_running()
    finally:
        unblock_notices()


def unblock_notices() -> None:
    """Unblock notices of termination, here or in a worker forked from the server; pending ones are delivered now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
