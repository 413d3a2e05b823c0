"""The launcher for processes that something else has started: torchrun, or Slurm's srun with torchrun's variables.

Every process runs the same command. Rank 0 drives the run as the driver of another launcher does: it prepares the data,
holds the lease, shows the progress, and trains as a worker. The others wait for its job and train.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from orchestrator.cluster.base import Launcher, check_device, error_text, is_final
from orchestrator.cluster.job_channel import JobChannel
from orchestrator.cluster.notices import ended_after_grace
from orchestrator.cluster.placed_worker import VARIABLES, placed_runtime, take_share_of_cores
from orchestrator.cluster.quick_imports import imported_train
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.errors import ConfigError, HardwareError, StoppedError, UserError, WorkerError, exit_code
from orchestrator.runs.run import Job
from orchestrator.storage.store import Storage

_FAILURE_DELAY_SECONDS = 0.5
"""A worker that loses a peer fails as well. This delay lets torchrun see the cause first, which it reports."""
_SHARED_ROOT_SECONDS = 30
"""A network file system may show a file this much later to another node."""

C = TypeVar("C", bound=TrainingRunConfig)


def drive_or_join(config: C, drive: Callable[[C, Launcher], None]) -> None:
    """Call `drive` in rank 0; in any other process train what rank 0 asks for, and end as it ends.

    Raises:
        UserError: the processes were not started for this, or a node lacks the GPUs.
    """
    _check_place(config.cluster)
    runtime = placed_runtime(_use_gpu(config.cluster))
    check_device(config, runtime.device != "cpu")
    channel = JobChannel(runtime.rank, runtime.world_size, config.cluster.hang_timeout_seconds)
    if runtime.rank:
        job = channel.receive()
        _check_root_is_shared(job)
        _train(job, runtime)
    else:
        with channel.driven():
            drive(config, TorchrunLauncher(runtime, channel))


class TorchrunLauncher:
    """Hands the job to the processes that wait for it, and trains in this one as rank 0.

    What started them restarts them: `cluster.max_failures` is not used.
    """

    def __init__(self, runtime: Runtime, channel: JobChannel) -> None:
        self._runtime, self._channel = runtime, channel

    def launch(self, job: Job, emit: Callable[[Event], None]) -> None:
        """See `Launcher.launch`; there is one attempt."""
        number = self._runtime.world_size
        emit({"kind": "note", "text": f"training with {number} worker{'s' if number > 1 else ''} under torchrun"})
        self._channel.send(job)
        try:
            _train(job, replace(self._runtime, emit=emit))
        except WorkerError as error:
            emit({"kind": "fault", "text": str(error)})
            raise


def _train(job: Job, runtime: Runtime) -> None:
    """Train on this worker.

    Raises:
        StoppedError: the run received a notice of termination; raised on rank 0, the others end with its exit code.
        WorkerError: this worker failed; torchrun gets the message as well.
    """
    train = imported_train()
    take_share_of_cores()
    try:
        with ended_after_grace(job.config.checkpoint.grace_seconds):
            train(job, runtime)
    except StoppedError as stop:
        if runtime.rank:
            raise SystemExit(exit_code(stop.signal_number)) from None
        raise
    except Exception as error:
        if not is_final(error):
            time.sleep(_FAILURE_DELAY_SECONDS)
        get_error_handler().record_exception(error)
        text = f"worker rank {runtime.rank} on {socket.gethostname()}: {error_text(error)}"
        raise WorkerError(text, is_final=is_final(error)) from error


def _check_place(config: ClusterConfig) -> None:
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"cluster=torchrun: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set, which torchrun "
            "sets: torchrun --nproc-per-node 8 -m orchestrator COMMAND cluster=torchrun …; with Slurm's srun set them "
            "as infra/slurm does; on one machine cluster=local needs neither"
        )
    for name in VARIABLES:
        if name != "MASTER_ADDR" and not os.environ[name].isdecimal():
            raise ConfigError(f"cluster=torchrun: {name}={os.environ[name]!r} must be a whole number, as of torchrun")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= world_size:
        raise ConfigError(f"cluster=torchrun: RANK={rank} must be below WORLD_SIZE={world_size}, as of torchrun")
    if config.num_workers != world_size:
        raise ConfigError(
            f"cluster.num_workers={config.num_workers}: torchrun has started WORLD_SIZE={world_size} processes; leave "
            "cluster.num_workers out, or start that many"
        )


def _use_gpu(config: ClusterConfig) -> bool:
    """Return whether this process takes the GPU of its place on the node, of which it has to see all GPUs."""
    present, local_rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    needed = max(local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    # some GPUs, but too few, are no reason to compute on CPUs: other nodes would compute on theirs
    if config.gpus_per_worker == 0 or (not present and config.gpus_per_worker is None):
        return False
    if present < needed:
        raise HardwareError(
            f"cluster.gpus_per_worker={config.gpus_per_worker}: the workers of {socket.gethostname()} need {needed} "
            f"GPUs, and this one sees {present}; show every process all GPUs of its node (Slurm: --gpus-per-node in "
            "place of --gpus-per-task), start fewer, or set cluster.gpus_per_worker=0"
        )
    return True


def _check_root_is_shared(job: Job) -> None:
    """Refuse a folder that rank 0 and this worker do not share, where each would write its part of a checkpoint.

    Raises:
        UserError: the lease, which rank 0 has written, is not there.
    """
    storage, deadline = Storage(job.config.storage.root), time.monotonic() + _SHARED_ROOT_SECONDS
    while not storage.exists(job.attempt.lease_name):
        if time.monotonic() > deadline:
            raise UserError(
                f"storage.root={storage.url()}: {socket.gethostname()} does not see there what rank 0 has written; "
                "choose a folder that all nodes share, or a URL such as s3://bucket/outputs"
            )
        time.sleep(1)
