"""This machine: one worker in this process, or several under torch's elastic agent, as torchrun starts them."""

import logging
import multiprocessing
import os
import signal
import socket
import uuid
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from orchestrator.cluster.base import check_device
from orchestrator.config import ClusterConfig, PretrainConfig
from orchestrator.console import ProgressDisplay
from orchestrator.errors import HardwareError, WorkerError
from orchestrator.run import Job
from orchestrator.runtime import Event, Runtime


class LocalLauncher:
    """Trains on this machine's CPUs or GPUs."""

    def __init__(self, config: PretrainConfig) -> None:
        self._num_workers = max(config.cluster.worker_counts)
        self._use_gpu = _use_gpu(config.cluster, self._num_workers)
        check_device(config, self._use_gpu)
        if self._num_workers > 1:
            _preload_workers()

    def launch(self, job: Job, emit: Callable[[Event], None]) -> None:
        """See `Launcher.launch`. With several workers rank 0 draws on this terminal itself, not through `emit`."""
        if self._num_workers == 1:
            from orchestrator.train import train

            train(job, Runtime(device="cuda:0" if self._use_gpu else "cpu", emit=emit))
        else:
            emit({"kind": "note", "text": f"starting {self._num_workers} workers"})
            self._launch_agent(job)

    def _launch_agent(self, job: Job) -> None:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self._num_workers,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            local_addr="localhost",
            start_method="forkserver",
        )
        # the agent's own account of a failure is pages long; ours is one message
        for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            elastic_launch(config, _worker)(job, self._use_gpu)
        except SignalException as stopped:
            # the agent takes over the signals, and has ended the workers
            raise KeyboardInterrupt if stopped.sigval == signal.SIGINT else SystemExit(128 + stopped.sigval) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise WorkerError(
                f"worker rank {rank} on {socket.gethostname()}: {_message(failure)}", details=_traceback(failure)
            ) from None


def _preload_workers() -> None:
    """Start the process that workers are forked from: it imports what they need once, while the text is prepared."""
    multiprocessing.set_forkserver_preload(["orchestrator.train", "torch._dynamo"])
    forkserver.ensure_running()


@record
def _worker(job: Job, use_gpu: bool) -> None:
    from orchestrator.train import train

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    runtime = Runtime(
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=local_rank,
        node_rank=int(os.environ["GROUP_RANK"]),
        device=f"cuda:{local_rank}" if use_gpu else "cpu",
    )
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    if rank:
        train(job, runtime)
        return
    with ProgressDisplay() as display:
        train(job, replace(runtime, emit=display))


def _message(failure: ProcessFailure) -> str:
    message: Any = failure.message
    return message["message"] if isinstance(message, dict) else str(message)


def _traceback(failure: ProcessFailure) -> str:
    message: Any = failure.message
    return message["extraInfo"]["py_callstack"] if isinstance(message, dict) else ""


def _use_gpu(config: ClusterConfig, num_workers: int) -> bool:
    present = torch.cuda.device_count()
    if config.gpus_per_worker and present < num_workers:
        raise HardwareError(
            f"cluster.gpus_per_worker={config.gpus_per_worker}: cluster.num_workers={num_workers} needs as many GPUs, "
            f"and this machine has {present}; lower cluster.num_workers or set cluster.gpus_per_worker=0"
        )
    return present >= num_workers if config.gpus_per_worker is None else bool(config.gpus_per_worker)
