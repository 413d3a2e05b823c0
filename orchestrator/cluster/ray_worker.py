"""A worker started by Ray Train: its position in the run, its notices, and the mailbox to and from the driver."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil
import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.base import error_text, is_final
from orchestrator.distributed.runtime import MOVE, STOP_SIGNALS, Event, Runtime, strength
from orchestrator.errors import HardwareError, MovedError, StoppedError
from orchestrator.runs.processes import ProcessId

MailboxActor = Any
"""A handle to a `Mailbox` actor."""
_LAST_EVENT = None


class Mailbox:
    """An actor for one run: events of workers and Ray Train's controller to the driver, its notice to the workers."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._stopped = asyncio.Event()
        self._number = 0

    async def put(self, *events: Event | None) -> None:
        for event in events:
            self._events.put_nowait(event)

    async def get(self) -> Event | None:
        return await self._events.get()

    async def stop(self, number: int) -> None:
        """Ask the run to stop as if by signal `number`."""
        self._number = number
        self._stopped.set()

    async def stop_asked(self) -> int:
        """Wait for the notice, and return its signal number; workers that start later receive it as well."""
        await self._stopped.wait()
        return self._number


@contextmanager
def open_mailbox(emit: Callable[[Event], None]) -> Iterator[MailboxActor]:
    """Yield a mailbox whose events are passed to `emit`, on a thread of this process."""
    # on the driver's own node, so that the mailbox survives the loss of another node
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: MailboxActor = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()

    def forward() -> None:
        event: Any
        while (event := ray.get(mailbox.get.remote())) is not _LAST_EVENT:
            emit(event)

    thread = threading.Thread(target=forward, daemon=True, name="events")
    thread.start()
    try:
        yield mailbox
    finally:
        ray.get(mailbox.put.remote(_LAST_EVENT))
        thread.join(timeout=10)
        ray.kill(mailbox)


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
        settings: The `Job` as `job`, the mailbox as `mailbox`, and the driver's `ProcessId` as `driver`.
    """
    from orchestrator.training.train import train

    threading.Thread(target=end_with, args=[settings["driver"]], daemon=True, name="driver").start()
    mailbox = settings["mailbox"]
    runtime = _runtime(mailbox)
    try:
        check_gpu()
        train(settings["job"], runtime)
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
