"""The only speaker of Ray: Ray Train schedules the workers, on an embedded Ray or on an existing cluster."""

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# before ray is imported: it reads them then
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.queue import Queue

from orchestrator.cluster.base import check_device
from orchestrator.config import ClusterConfig, PretrainConfig
from orchestrator.errors import HardwareError, WorkerError
from orchestrator.run import Job
from orchestrator.runtime import Event, Runtime

_LAST_EVENT = None


class RayLauncher:
    """Trains on a Ray cluster: one that exists, or one that is started here for the time of the run."""

    def __init__(self, config: PretrainConfig) -> None:
        self._config = config.cluster
        present = _present_resources(config.cluster)
        _check_resources(config.cluster, present)
        check_device(config, _use_gpu(config.cluster, present))

    def launch(self, job: Job, emit: Callable[[Event], None]) -> None:
        """See `Launcher.launch`; rank 0's events travel through a queue to this process."""
        emit({"kind": "note", "text": _starting(self._config)})
        with _cluster(self._config), _events(emit) as queue, tempfile.TemporaryDirectory(prefix="ray-train-") as notes:
            use_gpu = _use_gpu(self._config, ray.cluster_resources())
            trainer = TorchTrainer(
                _worker,
                train_loop_config={"job": job, "queue": queue},
                scaling_config=self._scaling(use_gpu),
                torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
                # nothing passes through Ray's own checkpoint transfer (DESIGN, invariant 4)
                run_config=RunConfig(name=job.run.name, storage_path=notes, failure_config=FailureConfig()),
            )
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise _worker_error(error) from None

    def _scaling(self, use_gpu: bool) -> ScalingConfig:
        resources: dict[str, float] = {"CPU": self._config.cpus_per_worker}
        if use_gpu:
            resources["GPU"] = 1
        return ScalingConfig(num_workers=self._config.num_workers, use_gpu=use_gpu, resources_per_worker=resources)


def _starting(config: ClusterConfig) -> str:
    workers = " to ".join(map(str, sorted({min(config.worker_counts), max(config.worker_counts)})))
    where = f"the Ray cluster at {config.address}" if config.address else "an embedded Ray"
    return f"starting {workers} worker{'s' if workers != '1' else ''} on {where}"


@contextmanager
def _cluster(config: ClusterConfig) -> Iterator[None]:
    """Connect to the cluster, or start one; leave one that was connected before as it is."""
    ours = not ray.is_initialized()
    if ours:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if config.address is None:
            options |= {"include_dashboard": False, "num_cpus": os.cpu_count()}
        try:
            ray.init(address=config.address or "local", **options)
        except (ConnectionError, ValueError) as error:
            raise HardwareError(f"cluster.address={config.address}: no Ray cluster answers there ({error})") from None
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _present_resources(config: ClusterConfig) -> Mapping[str, float]:
    """Return what there is, by Ray's names; an embedded Ray has this machine and need not start for it."""
    if config.address is None and not ray.is_initialized():
        return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    with _cluster(config):
        return ray.cluster_resources()


def _check_resources(config: ClusterConfig, present: Mapping[str, float]) -> None:
    fewest = min(config.worker_counts)
    wanted = {"CPU": fewest * config.cpus_per_worker, "GPU": float(fewest * (config.gpus_per_worker or 0))}
    for kind, number in wanted.items():
        if number > present.get(kind, 0):
            raise HardwareError(
                f"cluster.num_workers={fewest}: the workers need {number:g} {kind}s, and the cluster has "
                f"{present.get(kind, 0):g}; lower cluster.num_workers or cluster.{kind.lower()}s_per_worker"
            )


def _use_gpu(config: ClusterConfig, present: Mapping[str, float]) -> bool:
    if config.gpus_per_worker is None:
        return present.get("GPU", 0) >= max(config.worker_counts)
    return bool(config.gpus_per_worker)


@contextmanager
def _events(emit: Callable[[Event], None]) -> Iterator[Queue]:
    """Give a queue whose events reach `emit`, on a thread of this process."""
    queue = Queue(actor_options={"num_cpus": 0})

    def forward() -> None:
        while (event := queue.get()) is not _LAST_EVENT:
            emit(event)

    thread = threading.Thread(target=forward, daemon=True, name="events")
    thread.start()
    try:
        yield queue
    finally:
        queue.put(_LAST_EVENT)
        thread.join(timeout=10)
        queue.shutdown()


def _worker(settings: dict[str, Any]) -> None:
    from orchestrator.train import train

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    queue = settings["queue"]
    runtime = Runtime(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        node_rank=context.get_node_rank(),
        device=str(device),
        emit=queue.put_nowait,
    )
    try:
        train(settings["job"], runtime)
    except Exception as error:
        error.add_note(f"on {socket.gethostname()}")
        raise


def _worker_error(error: TrainingFailedError) -> WorkerError:
    """Return the first worker's own message instead of Ray's pages."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = min(error.worker_failures.items())
        cause = getattr(failure, "cause", None) or failure.__cause__ or failure
        where = " ".join(getattr(cause, "__notes__", ()))
        return WorkerError(f"worker rank {rank} {where}: {type(cause).__name__}: {cause}", details=str(failure))
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    return WorkerError(f"Ray Train's controller failed: {type(cause).__name__}: {cause}", details=str(error))
