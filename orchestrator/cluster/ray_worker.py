"""A worker started by Ray Train: its position in the run, and its notices."""

import gc
import os
import signal
import socket
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

import psutil
import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

from orchestrator.cluster.base import error_text, is_final
from orchestrator.cluster.quick_imports import imported_train, quick_imports
from orchestrator.cluster.ray_mailbox import MailboxActor
from orchestrator.distributed.runtime import MOVE, STOP_SIGNALS, Event, Runtime, strength
from orchestrator.errors import HardwareError, MovedError, StoppedError
from orchestrator.runs.processes import ProcessId

with quick_imports():  # here a worker and the controller import them first
    import ray.train.torch
    import torch


class MovedWorkerError(RayActorError):
    """A worker has saved and ended on purpose, so that the run can continue elsewhere.

    Args:
        preempted: Its or another worker's node is being preempted. Ray Train then counts the error as a preemption.
    """

    def __init__(self, text: str, preempted: bool) -> None:
        super().__init__(error_msg=text, preempted=preempted)
        self.args = (text, preempted)  # the constructor arguments when it is unpickled in another process


class WorkerNotices(WorkerCallback):
    """Receives notices of termination in the main thread of a worker, as Ray Train trains on another thread."""

    def after_init_train_context(self) -> None:
        """Install the handlers: Ray's own handler of SIGTERM ends the worker, and Ray blocks SIGINT in it."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, received.receive)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class ReceivedNotice:
    """The strongest notice that this process has received; a signal is stronger than `MOVE`."""

    def __init__(self) -> None:
        self.number = 0
        """0 until one is received."""

    def receive(self, number: int, _: FrameType | None = None) -> None:
        """Record a notice; this method can be installed as a signal handler."""
        self.number = max(self.number, number, key=strength)


received = ReceivedNotice()
"""The one of this process: the signal handlers, the mailbox and the controller all write to it."""


def ask_to_move() -> None:
    """Ask all workers to save and end, so that the run continues with another number; called in one of them."""
    received.receive(MOVE)


def work(settings: dict[str, Any]) -> None:
    """Train on this worker.

    Args:
        settings: A reference to the `Job` as `job`, the mailbox as `mailbox`, and the driver's `ProcessId` as `driver`.
    """
    threading.Thread(target=end_with, args=[settings["driver"]], daemon=True, name="driver").start()
    mailbox = settings["mailbox"]
    runtime = _runtime(mailbox)
    try:
        check_gpu()
        with quick_imports():
            job: Any = ray.get(settings["job"])
            train = imported_train()
        gc.freeze()  # the next full collection would look at all that was imported: a second before the first step
        train(job, runtime)
    except StoppedError:
        return  # rank 0 has reported it to the driver
    except MovedError as error:
        raise MovedWorkerError(str(error), _is_preempted()) from None
    except Exception as error:
        text = f"worker rank {runtime.rank} on {socket.gethostname()}: {error_text(error)}"
        if is_final(error):
            ray.get(mailbox.put.remote({"kind": "final", "text": text}))
        error.add_note(text)
        raise


def end_with(driver: ProcessId) -> None:
    """End this process when a driver on the same host ends.

    The embedded Ray of a killed driver lives on for some seconds, but its lease is free at once.
    """
    if driver.is_alive:
        with suppress(psutil.Error):
            psutil.Process(driver.pid).wait()
        os._exit(1)


def _runtime(mailbox: MailboxActor) -> Runtime:
    def emit(event: Event) -> None:
        ray.get(mailbox.put.remote(event))

    context = ray.train.get_context()
    rank = context.get_world_rank()
    if rank == 0:
        threading.Thread(target=_listen_for_stop, args=(mailbox,), daemon=True, name="stops").start()
    return Runtime(
        rank=rank,
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        node_rank=context.get_node_rank(),
        device=str(ray.train.torch.get_device()),
        emit=emit,
        stop_asked=_stop_asked,
    )


def check_gpu() -> None:
    """Check that torch sees the GPU that this worker has got: Ray gives it out by the node's word alone.

    Raises:
        HardwareError: it sees none.
    """
    if ray.get_gpu_ids() and not torch.cuda.is_available():
        raise HardwareError(
            f"{socket.gethostname()}: the worker has got a GPU of the cluster, and torch sees none there; install a "
            "driver that fits torch's CUDA build on that node, or set cluster.gpus_per_worker=0"
        )


def _listen_for_stop(mailbox: MailboxActor) -> None:
    with suppress(Exception):  # the mailbox ends with the run
        received.receive(ray.get(mailbox.stop_asked.remote()))


def _stop_asked() -> int:
    return received.number or (MOVE if _is_preempted() else 0)


def _is_preempted() -> bool:
    """Return whether Ray has announced that a worker's node is about to be taken away.

    `ray.train.get_preemption_info` is a barrier through an actor; our ranks agree without it (ray 2.60.0).
    """
    return get_train_context().preemption_context.preemption_info is not None
