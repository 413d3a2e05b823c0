"""Training processes that are kept: many tiny trainings under one process group need a single start."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any


@dataclass
class Outcome:
    """The events of rank 0 in a training, and the first error of any rank."""

    events: list[dict[str, Any]]
    error: str | None

    def losses(self, name: str = "train/loss") -> dict[int, float]:
        """Return the loss of each step that was trained."""
        return {event["step"]: event["metrics"][name] for event in self.events if event["kind"] == "step"}


def _nothing(rank: int) -> AbstractContextManager[None]:
    return nullcontext()


class WorkerPool:
    """`world_size` processes that run `train` together, job after job, on the CPU or each on a GPU (`cuda`)."""

    def __init__(self, world_size: int, device: str = "cpu") -> None:
        self.world_size = world_size
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, world_size, port, device), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def train(self, job: Any, around: Callable[[int], AbstractContextManager[None]] = _nothing) -> Outcome:
        """Run a job on all workers, each within `around(rank)`; return rank 0's events and the first error of any."""
        for pipe in self._pipes:
            pipe.send((job, around))
        replies = [pipe.recv() for pipe in self._pipes]
        error = next((reply[1] for reply in replies if reply[1]), None)
        return Outcome(replies[0][0], error)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


class Pools(dict[int, WorkerPool]):
    """A pool of each size on a kind of device, started at the first request."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._device = device

    def __missing__(self, world_size: int) -> WorkerPool:
        self[world_size] = WorkerPool(world_size, self._device)
        return self[world_size]

    def close(self) -> None:
        """End all pools."""
        for pool in self.values():
            pool.close()


def _serve(pipe: Any, rank: int, world_size: int, port: int, device: str) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "DS_ACCELERATOR": device}
    import torch

    from orchestrator.distributed.runtime import Runtime
    from orchestrator.training.train import train

    torch.set_num_threads(1)
    while True:
        job, around = pipe.recv()
        events: list[dict[str, Any]] = []
        place = device if device == "cpu" else f"{device}:{rank}"
        runtime = Runtime(rank=rank, world_size=world_size, local_rank=rank, device=place, emit=events.append)
        error = None
        try:
            with around(rank):
                train(job, runtime)
        except Exception:
            error = traceback.format_exc()
        pipe.send((events, error))
