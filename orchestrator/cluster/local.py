"""The launcher for this machine: one worker in this process, or several under torch's elastic agent, as in torchrun."""

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from modules.errors import InputError
from orchestrator.cluster import fork_server
from orchestrator.cluster.base import check_device, is_final, restart_event
from orchestrator.cluster.notices import ended_after_grace, forward_notices
from orchestrator.cluster.placed_worker import placed_runtime, take_share_of_cores
from orchestrator.cluster.quick_imports import imported_train
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.display.progress import ProgressDisplay
from orchestrator.display.streams import open_standard_streams
from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.errors import HardwareError, OrchestratorError, StoppedError, WorkerError, exit_code
from orchestrator.runs.run import Job

_AGENT_LOGGERS = (
    "torch.distributed.elastic",
    "torch.distributed.elastic.agent.server.api",
    "torch.multiprocessing",
)
"""Their own report of a failure is pages long; ours is one message."""
_FAILURE_DELAY_SECONDS = 0.5
"""A worker that loses a peer fails as well, and the agent, which polls ten times a second, reports the failure that it
sees first. This delay lets it see the cause first."""


class LocalLauncher:
    """Trains on this machine's CPUs or GPUs."""

    def __init__(self, config: TrainingRunConfig) -> None:
        self._config = config.cluster
        self._num_workers = max(config.cluster.worker_counts)
        self._grace_seconds = config.checkpoint.grace_seconds
        self._use_gpu = _use_gpu(config.cluster, self._num_workers)
        check_device(config, self._use_gpu)
        if self._num_workers > 1:
            fork_server.start()  # the command line has, already

    def launch(self, job: Job, emit: Callable[[Event], None]) -> None:
        """See `Launcher.launch`. With several workers, rank 0 draws on this terminal itself, not through `emit`.

        A single worker is this process: if it is killed, only its user can restart it.
        """
        if self._num_workers == 1:
            train = imported_train()
            with ended_after_grace(self._grace_seconds):
                train(job, Runtime(device="cuda:0" if self._use_gpu else "cpu", emit=emit))
        else:
            emit({"kind": "note", "text": f"starting {self._num_workers} workers"})
            self._launch_workers(job, emit)

    def _launch_workers(self, job: Job, emit: Callable[[Event], None]) -> None:
        for number in range(1, self._config.max_failures + 2):
            try:
                self._attempt(job)
                return
            except WorkerError as error:
                emit({"kind": "fault", "text": str(error)})
                if error.is_final or number > self._config.max_failures:
                    raise
            emit(restart_event(number, self._config.max_failures))

    def _attempt(self, job: Job) -> None:
        with forward_notices(_signal_workers, _kill_workers, self._grace_seconds) as notices:
            try:
                stops = elastic_launch(self._agent_config(), _worker)(job, self._use_gpu)
            except SignalException as error:
                raise SystemExit(128 + error.sigval) from None
            except ChildFailedError as error:
                if notices.killed_after == signal.SIGINT:
                    raise KeyboardInterrupt from None
                # a worker was lost before all could save: the run ends as requested, without restart
                raise SystemExit(exit_code(notices.received)) if notices.received else _worker_error(error) from None
        if stops[0] is not None:
            raise StoppedError(*stops[0])

    def _agent_config(self) -> LaunchConfig:
        for name in _AGENT_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self._num_workers,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            local_addr="localhost",
            start_method="forkserver",
            # notices of termination we forward to the workers ourselves, which gives them time to save
            signals_to_handle="SIGQUIT",
        )


def _signal_workers(number: int) -> None:
    for process in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(process.pid or 0, number)


def _kill_workers() -> None:
    _signal_workers(signal.SIGKILL)


@record
def _worker(job: Job, use_gpu: bool) -> tuple[int, int] | None:
    """Train on this worker; return signal and step if it was stopped."""
    open_standard_streams()  # a worker goes on when the terminal is gone or the log's disk is full
    fork_server.unblock_notices()
    threading.Thread(target=_end_with_driver, daemon=True, name="driver").start()
    try:
        _train(job, use_gpu)
    except StoppedError as stop:
        return stop.signal_number, stop.step
    except Exception as error:
        if not is_final(error):
            time.sleep(_FAILURE_DELAY_SECONDS)
        raise
    return None


def _end_with_driver() -> None:
    """End with the driver, so that no worker writes into a run which another driver may have taken over."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


def _train(job: Job, use_gpu: bool) -> None:
    train = imported_train()
    runtime = placed_runtime(use_gpu)
    if not os.environ.get("OMP_NUM_THREADS"):  # as in a stage of a pipeline, which has a share of the cores
        take_share_of_cores()
    if runtime.rank:
        train(job, runtime)
        return
    with ProgressDisplay() as display:
        train(job, replace(runtime, emit=display))


def _worker_error(error: ChildFailedError) -> WorkerError:
    """Return the message of the worker that failed first, instead of the agent's page."""
    rank, failure = error.get_first_failure()
    name, _, text = _message(failure).partition(": ")
    kind = _own_errors().get(name)
    message = f"worker rank {rank} on {socket.gethostname()}: {text if kind else _message(failure)}"
    return WorkerError(message, _traceback(failure), is_final=kind is not None and getattr(kind, "is_final", True))


def _own_errors() -> dict[str, type[BaseException]]:
    """Return our own errors by name, which is all of an error's class that the agent passes on."""
    kinds: list[type[BaseException]] = [OrchestratorError, InputError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.__name__: kind for kind in kinds}


def _message(failure: ProcessFailure) -> str:
    message: Any = failure.message
    if isinstance(message, dict):
        return message["message"]
    return f"was killed ({failure.signal_name()})" if failure.exitcode < 0 else f"ended with code {failure.exitcode}"


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
