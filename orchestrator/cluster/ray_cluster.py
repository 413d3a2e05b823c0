"""The only speaker of Ray: Ray Train schedules the workers, on an embedded Ray or on an existing cluster."""

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

# before ray is imported: it reads them then
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.queue import Queue

from orchestrator.cluster.base import check_device, is_final, restart_event, told
from orchestrator.cluster.notices import passed_on
from orchestrator.config import ClusterConfig, PretrainConfig
from orchestrator.errors import HardwareError, StoppedError, WorkerError
from orchestrator.run import Job
from orchestrator.runtime import Event, Runtime, nobody_asked

_LAST_EVENT = None
_ABORT_SECONDS = 20


class RayLauncher:
    """Trains on a Ray cluster: one that exists, or one that is started here for the time of the run."""

    def __init__(self, config: PretrainConfig) -> None:
        self._config, self._grace_seconds = config.cluster, config.checkpoint.grace_seconds
        present = _present_resources(config.cluster)
        _check_resources(config.cluster, present)
        check_device(config, _use_gpu(config.cluster, present))

    def launch(self, job: Job, emit: Callable[[Event], None]) -> None:
        """See `Launcher.launch`; events of workers and of Ray Train's controller travel through a queue."""
        emit({"kind": "note", "text": _starting(self._config)})
        with _cluster(self._config), tempfile.TemporaryDirectory(prefix="ray-train-") as notes:
            attempt = _Attempt(emit)
            with _events(attempt.receive) as queue, _queue() as stops:
                trainer = self._trainer(job, queue, stops, notes)
                attempt.trainer = trainer
                with passed_on(stops.put, trainer.abort, self._grace_seconds) as killed_after:
                    attempt.run(killed_after)

    def _trainer(self, job: Job, queue: Queue, stops: Queue, notes: str) -> "_Trainer":
        use_gpu = _use_gpu(self._config, ray.cluster_resources())
        max_failures = self._config.max_failures
        return _Trainer(
            _worker,
            train_loop_config={"job": job, "queue": queue, "stops": stops},
            scaling_config=self._scaling(use_gpu),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            run_config=RunConfig(
                name=job.run.name,
                storage_path=notes,  # nothing passes through Ray's own checkpoint transfer (DESIGN, invariant 4)
                failure_config=FailureConfig(max_failures=max_failures),
                callbacks=[_Faults(queue, max_failures)],
            ),
        )

    def _scaling(self, use_gpu: bool) -> ScalingConfig:
        resources: dict[str, float] = {"CPU": self._config.cpus_per_worker}
        if use_gpu:
            resources["GPU"] = 1
        return ScalingConfig(num_workers=self._config.num_workers, use_gpu=use_gpu, resources_per_worker=resources)


class _Attempt:
    """Waits for a run, and knows from its events why it ended."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._stop: StoppedError | None = None
        self._final: WorkerError | None = None
        self.trainer: _Trainer | None = None

    def receive(self, event: Event) -> None:
        """Pass an event on; a failure that would repeat itself ends the run."""
        if event["kind"] == "stop":
            self._stop = StoppedError(event["signal"], event["step"])
        if event["kind"] == "final" and self.trainer and not self._final:
            self._final = WorkerError(event["text"], is_final=True)
            self._emit({"kind": "fault", "text": event["text"]})
            self.trainer.abort()
        elif not self._final:
            self._emit(event)

    def run(self, killed_after: Callable[[], int]) -> None:
        """Train to the end.

        Raises:
            WorkerError: a worker failed once too often, or in a way that would repeat itself.
            StoppedError: the workers have stopped on a notice of termination.
        """
        assert self.trainer is not None
        try:
            self.trainer.fit()
        except Exception as error:
            self._raise_reason(killed_after())
            raise (_worker_error(error) if isinstance(error, TrainingFailedError) else error) from None
        except BaseException:
            self._raise_reason(killed_after())
            raise
        self._raise_reason(killed_after())

    def _raise_reason(self, killed_after: int) -> None:
        if self._final:
            raise self._final
        if killed_after == signal.SIGINT:
            raise KeyboardInterrupt
        if killed_after:
            raise SystemExit(128 + killed_after)
        if self._stop:
            raise self._stop


class _Faults(UserCallback):
    """Tells what Ray Train sees of lost workers; it lives in the controller."""

    def __init__(self, queue: Queue, max_failures: int) -> None:
        self._queue, self._max_failures = queue, max_failures
        self._number = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Report the fault, and the restart that follows it if one is left."""
        self._number += 1
        self._queue.put_nowait({"kind": "fault", "text": _failure_text(worker_exceptions)})
        if self._number <= self._max_failures:
            self._queue.put_nowait(restart_event(self._number, self._max_failures))


def _starting(config: ClusterConfig) -> str:
    workers = " to ".join(map(str, sorted({min(config.worker_counts), max(config.worker_counts)})))
    where = f"the Ray cluster at {config.address}" if config.address else "an embedded Ray"
    return f"starting {workers} worker{'s' if workers != '1' else ''} on {where}"


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to us: Ray's own handler makes exit code 1 of it (ray 2.60.0)."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the workers; on an existing cluster they would train on."""
        if self._controller is not None:
            with suppress(Exception):  # the controller ends itself in the middle of its answer
                ray.get(self._controller.abort.remote(), timeout=_ABORT_SECONDS)


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


def cluster_facts(address: str) -> dict[str, Any]:
    """Return what an existing cluster says of itself, as plain data.

    Raises:
        Exception: Ray's own, where no cluster of the same version answers.
    """
    with _cluster(ClusterConfig(name="ray", address=address)):
        return {
            "version": ray.__version__,  # a cluster of another version refuses
            "address": ray.get_runtime_context().gcs_address,
            "num_nodes": sum(node["Alive"] for node in ray.nodes()),
            "resources": ray.cluster_resources(),
        }


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
def _queue() -> Iterator[Queue]:
    queue = Queue(actor_options={"num_cpus": 0})
    try:
        yield queue
    finally:
        queue.shutdown()


@contextmanager
def _events(emit: Callable[[Event], None]) -> Iterator[Queue]:
    """Give a queue whose events reach `emit`, on a thread of this process."""
    with _queue() as queue:

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


def _worker(settings: dict[str, Any]) -> None:
    from orchestrator.train import train

    context = ray.train.get_context()
    queue, rank = settings["queue"], context.get_world_rank()
    runtime = Runtime(
        rank=rank,
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        node_rank=context.get_node_rank(),
        device=str(ray.train.torch.get_device()),
        emit=queue.put_nowait,
        stop_asked=_Listener(settings["stops"]) if rank == 0 else nobody_asked,
    )
    try:
        train(settings["job"], runtime)
    except StoppedError:
        return  # rank 0 has told the driver
    except Exception as error:
        text = f"worker rank {rank} on {socket.gethostname()}: {told(error)}"
        if is_final(error):
            queue.put({"kind": "final", "text": text})
        error.add_note(text)
        raise


class _Listener:
    """Hears from the driver, on a thread of its own, that the run shall stop."""

    def __init__(self, stops: Queue) -> None:
        self._stops = stops
        self._number = 0
        threading.Thread(target=self._listen, daemon=True, name="stops").start()

    def _listen(self) -> None:
        with suppress(Exception):  # the queue ends with the run
            self._number = self._stops.get()

    def __call__(self) -> int:
        return self._number


def _worker_error(error: TrainingFailedError) -> WorkerError:
    """Return the first worker's own message instead of Ray's pages."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return WorkerError(_failure_text(error.worker_failures), details=str(error))
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    return WorkerError(f"Ray Train's controller failed: {type(cause).__name__}: {cause}", details=str(error))


def _failure_text(failures: Mapping[int, Exception]) -> str:
    rank, failure = min(failures.items())
    cause = getattr(failure, "cause", None) or failure.__cause__ or failure
    notes = getattr(cause, "__notes__", ())
    return notes[0] if notes else f"worker rank {rank}: {_first_line(cause)}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
