"""The Ray launcher: Ray Train schedules the workers, on an embedded Ray or on an existing cluster."""

import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

# set before the import of ray, which reads them
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray._private import worker as ray_driver
from ray.exceptions import AuthenticationError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from modules.cores import num_cores
from orchestrator.cluster.base import check_device
from orchestrator.cluster.notices import Notices, forward_notices
from orchestrator.cluster.ray_policy import Failures, fault_text, scaling_policy
from orchestrator.cluster.ray_private import private_cluster
from orchestrator.cluster.ray_resources import Resources, check_resources, of_the_cluster, of_this_machine, use_gpu
from orchestrator.cluster.ray_storage import check_shared, hosts_without
from orchestrator.cluster.ray_token import TOKEN_FILE, check_secure
from orchestrator.cluster.ray_worker import MailboxActor, WorkerNotices, open_mailbox, work
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.configuration.rules import one_of, worker_counts
from orchestrator.distributed.runtime import STOP_SIGNALS, Event
from orchestrator.errors import HardwareError, StoppedError, WorkerError, exit_code
from orchestrator.runs.processes import ProcessId
from orchestrator.runs.run import Job

_ABORT_SECONDS = 20
_LARGE_GROUP = 64
"""With more workers than this the controller polls them at Ray Train's default interval."""


class RayLauncher:
    """Trains on a Ray cluster: an existing one, or one that is started here for the duration of the run."""

    def __init__(self, config: TrainingRunConfig) -> None:
        self._config, self._grace_seconds = config.cluster, config.checkpoint.grace_seconds
        self._worker_counts = worker_counts(config)
        check_secure("cluster.address", config.cluster.address, config.cluster.allow_insecure, "cluster.allow_insecure")
        resources, fewest = _resources(config.cluster, config.storage.root), self._worker_counts[0]
        check_resources(config.cluster, fewest, resources)
        self._use_gpu = use_gpu(config.cluster, fewest, resources)
        check_device(config, self._use_gpu)

    def launch(self, job: Job, emit: Callable[[Event], None]) -> None:
        """See `Launcher.launch`; events of the workers and of Ray Train's controller arrive through a mailbox."""
        emit({"kind": "note", "text": _start_text(self._config, self._worker_counts)})
        _tune(self._worker_counts)
        with connected(self._config), tempfile.TemporaryDirectory(prefix="ray-train-") as ray_folder:
            attempt = _Attempt(emit)
            with open_mailbox(attempt.receive) as mailbox:
                trainer = self._trainer(job, mailbox, ray_folder)
                attempt.trainer = trainer
                with forward_notices(mailbox.stop.remote, trainer.abort, self._grace_seconds) as notices:
                    attempt.run(notices)

    def _trainer(self, job: Job, mailbox: MailboxActor, ray_folder: str) -> "_Trainer":
        max_preemptions = self._config.max_preemptions
        trainer = _Trainer(
            work,
            train_loop_config={"job": job, "mailbox": mailbox, "driver": ProcessId.of(os.getpid())},
            scaling_config=self._scaling(),
            torch_config=TorchConfig(backend="nccl" if self._use_gpu else "gloo"),
            run_config=RunConfig(
                name=job.run.name,
                storage_path=ray_folder,  # Ray's own checkpoint transfer is not used (CONTRIBUTING, invariant 4)
                failure_config=FailureConfig(
                    max_failures=self._config.max_failures,
                    max_preemption_failures=-1 if max_preemptions is None else max_preemptions,
                ),
                callbacks=[WorkerNotices()],  # type: ignore[list-item]  # Ray Train accepts its internal ones as well
            ),
        )
        trainer.mailbox, trainer.worker_counts = mailbox, self._worker_counts
        return trainer

    def _scaling(self) -> ScalingConfig:
        resources: dict[str, float] = {"CPU": self._config.cpus_per_worker}
        if self._use_gpu:
            resources["GPU"] = 1
        fewest, most = self._worker_counts[0], self._worker_counts[-1]
        return ScalingConfig(
            num_workers=(fewest, most) if fewest < most else most,
            use_gpu=self._use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=self._config.resize_interval_seconds,
        )


class _Attempt:
    """Runs the training to its end, and finds out from its events why it ended."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._stop: StoppedError | None = None
        self._final: WorkerError | None = None
        self._hang: str | None = None
        self.trainer: _Trainer | None = None

    def receive(self, event: Event) -> None:
        """Pass an event on; a failure that a new attempt would repeat ends the run."""
        if event["kind"] == "stop":
            self._stop = StoppedError(event["signal"], event["step"])
        if event["kind"] == "final" and self.trainer and not self._final:
            self._final = WorkerError(event["text"], is_final=True)
            self._emit({"kind": "fault", "text": event["text"]})
            self.trainer.abort()
        elif event["kind"] == "hang":
            # the worker ends itself, and Ray reports no more than that: the fault event gets this text
            self._hang = self._hang or event["text"]
        elif not self._final:
            self._emit(self._with_hang_text(event))

    def _with_hang_text(self, event: Event) -> Event:
        if event["kind"] == "begin":
            self._hang = None
        if event["kind"] != "fault" or self._hang is None:
            return event
        text, self._hang = self._hang, None
        return {**event, "text": text}

    def run(self, notices: Notices) -> None:
        """Train to the end.

        Raises:
            WorkerError: a worker failed once too often, or in a way that a new attempt would repeat.
            StoppedError: the workers have stopped on a notice of termination.
        """
        assert self.trainer is not None
        try:
            self.trainer.fit()
        except Exception as error:
            self._raise_reason(notices.killed_after)
            raise (_worker_error(error) if isinstance(error, TrainingFailedError) else error) from None
        except BaseException:
            self._raise_reason(notices.killed_after)
            raise
        self._raise_reason(notices.killed_after)

    def _raise_reason(self, killed_after: int) -> None:
        if self._final:
            raise self._final
        if killed_after == signal.SIGINT:
            raise KeyboardInterrupt
        if killed_after:
            raise SystemExit(exit_code(killed_after))
        if self._stop:
            raise self._stop


def _start_text(config: ClusterConfig, counts: Sequence[int]) -> str:
    where = f"the Ray cluster at {config.address}" if config.address else "an embedded Ray"
    return f"starting {one_of(counts)} worker{'s' if counts[-1] > 1 else ''} on {where}"


def _tune(counts: Sequence[int]) -> None:
    """Make Ray Train detect a lost worker sooner, unless the user has set these variables; workers get them too."""
    if counts[-1] <= _LARGE_GROUP:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "2")
    if len(counts) > 1:
        # workers wait this long for resources that the cluster no longer has; then fewer may do
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")


class _Trainer(TorchTrainer):
    """Uses our policies, and leaves Ctrl-C to us: Ray's own handler turns it into exit code 1 (ray 2.60.0)."""

    mailbox: MailboxActor | None = None
    worker_counts: Sequence[int] = ()
    _controller: Any = None

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        policies = {
            "failure_policy": Failures(self.run_config.failure_config or FailureConfig(), self.mailbox),
            "scaling_policy": scaling_policy(self.scaling_config, self.mailbox, self.worker_counts),
        }
        return super()._initialize_and_run_controller(**{**settings, **policies})

    def _create_default_callbacks(self) -> list[Any]:
        # we do not use Ray Data: it costs an actor, and seconds of imports in every worker, at each start
        return [one for one in super()._create_default_callbacks() if not isinstance(one, DatasetsCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the workers, which would otherwise continue to train on an existing cluster."""
        if self._controller is not None:
            with suppress(Exception):  # the controller exits before its answer is complete
                ray.get(self._controller.abort.remote(), timeout=_ABORT_SECONDS)
            with suppress(Exception):  # it does not answer while it waits for resources; its workers end with it
                ray.kill(self._controller)


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Connect to the cluster, or start one; leave an existing connection as it is."""
    if ray.is_initialized():
        yield
        return
    with private_cluster() if config.address is None else nullcontext():
        _connect(config)
        try:
            yield
        finally:
            _end_without_grace()
            ray.shutdown()


def _connect(config: ClusterConfig) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.address is None:
        options |= {"include_dashboard": False, "num_cpus": num_cores()}
    # Ray prints pages of the log of each lost raylet, even without log_to_driver; our events report the loss
    ray_driver.print_to_stdstream = lambda *_, **__: None
    try:
        with _blocked_notices():
            ray.init(address=config.address or "local", **options)
    except AuthenticationError:
        raise HardwareError(
            f"cluster.address={config.address}: the cluster demands a token, and got none or another one; set "
            f"RAY_AUTH_MODE=token, and put its token into RAY_AUTH_TOKEN or ~/{TOKEN_FILE}"
        ) from None
    except (ConnectionError, ValueError) as error:
        raise HardwareError(f"cluster.address={config.address}: no Ray cluster answers there ({error})") from None


@contextmanager
def _blocked_notices() -> Iterator[None]:
    """Block notices in the processes that are started here, which inherit that; our workers unblock them again.

    Slurm and systemd send these notices to every process of a run. An embedded Ray would end before the workers have
    saved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _end_without_grace() -> None:
    """Let Ray kill its own processes at once: with SIGTERM blocked each would cost it a second (ray 2.60.0)."""
    node = ray_driver._global_node
    if node is not None:
        kill = node.kill_all_processes
        node.kill_all_processes = lambda **_: kill(check_alive=False)


def cluster_facts(address: str, root: str) -> dict[str, Any]:
    """Return what an existing cluster reports about itself and its view of a storage root, as plain data.

    Raises:
        Exception: Ray's own, if no cluster of the same version answers.
    """
    with connected(ClusterConfig(name="ray", address=address)):
        return {
            "version": ray.__version__,  # a cluster of another version refuses the connection
            "address": ray.get_runtime_context().gcs_address,
            "num_nodes": sum(node["Alive"] for node in ray.nodes()),
            "resources": ray.cluster_resources(),
            "hosts_without_root": hosts_without(root) if root else [],
        }


def _resources(config: ClusterConfig, root: str) -> Resources:
    """Return what there is for workers.

    Raises:
        UserError: they would run on machines that do not see the storage root.
    """
    if config.address is None and not ray.is_initialized():
        return of_this_machine()
    with connected(config):
        check_shared(root)
        return of_the_cluster()


def _worker_error(error: TrainingFailedError) -> WorkerError:
    return WorkerError(fault_text(error), details=str(error))
