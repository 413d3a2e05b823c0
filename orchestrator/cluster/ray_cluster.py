"""The Ray launcher: Ray Train schedules the workers, on an embedded Ray or on an existing cluster.

This file needs neither Ray Train nor torch, which take seconds: `ray_trainer.py` is imported while a cluster starts.
"""

import importlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

# set before the import of ray, which reads them
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray._private import worker as ray_driver
from ray.exceptions import AuthenticationError

from modules.cores import num_cores
from orchestrator.cluster.base import check_device
from orchestrator.cluster.notices import forward_notices
from orchestrator.cluster.quick_imports import quick_imports
from orchestrator.cluster.ray_mailbox import open_mailbox
from orchestrator.cluster.ray_private import private_cluster
from orchestrator.cluster.ray_resources import Resources, check_resources, of_the_cluster, of_this_machine, use_gpu
from orchestrator.cluster.ray_storage import check_shared, hosts_without
from orchestrator.cluster.ray_token import TOKEN_FILE, check_secure
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.configuration.rules import one_of, worker_counts
from orchestrator.distributed.runtime import STOP_SIGNALS, Event
from orchestrator.errors import HardwareError
from orchestrator.runs.run import Job

_LARGE_GROUP = 64
"""With more workers than this the controller polls them at Ray Train's default interval."""
_TRAINER = "orchestrator.cluster.ray_trainer"


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
        with connected(self._config, _TRAINER), tempfile.TemporaryDirectory(prefix="ray-train-") as ray_folder:
            from orchestrator.cluster.ray_trainer import Attempt, trainer_of

            attempt = Attempt(emit)
            with open_mailbox(attempt.receive) as mailbox:
                trainer = trainer_of(job, self._worker_counts, self._use_gpu, mailbox, ray_folder)
                attempt.trainer = trainer
                with forward_notices(mailbox.stop.remote, trainer.abort, self._grace_seconds) as notices:
                    attempt.run(notices)


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


@contextmanager
def connected(config: ClusterConfig, meanwhile: str | None = None) -> Iterator[None]:
    """Connect to the cluster, or start one; leave an existing connection as it is.

    Args:
        config: Says which cluster.
        meanwhile: A module that is imported on a thread while this process waits for the cluster.
    """
    if ray.is_initialized():
        yield
        return
    with private_cluster() if config.address is None else nullcontext():
        _connect(config, meanwhile)
        try:
            yield
        finally:
            _end_without_grace()
            ray.shutdown()


def _connect(config: ClusterConfig, meanwhile: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.address is None:
        options |= {"include_dashboard": False, "num_cpus": num_cores()}
    # Ray prints pages of the log of each lost raylet, even without log_to_driver; our events report the loss
    ray_driver.print_to_stdstream = lambda *_, **__: None
    try:
        with _blocked_notices(), _imported(meanwhile) if meanwhile else nullcontext():
            ray.init(address=config.address or "local", **options)
    except AuthenticationError:
        raise HardwareError(
            f"cluster.address={config.address}: the cluster demands a token, and got none or another one; set "
            f"RAY_AUTH_MODE=token, and put its token into RAY_AUTH_TOKEN or ~/{TOKEN_FILE}"
        ) from None
    except (ConnectionError, ValueError) as error:
        raise HardwareError(f"cluster.address={config.address}: no Ray cluster answers there ({error})") from None


@contextmanager
def _imported(module: str) -> Iterator[None]:
    """Import a module on a thread, which ends within: a thread that still imports could crash a process that exits."""
    thread = threading.Thread(target=importlib.import_module, args=[module], name="imports")
    with quick_imports():
        thread.start()
        try:
            yield
        finally:
            thread.join()


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
        return of_this_machine(with_gpus=config.gpus_per_worker != 0)
    with connected(config):
        check_shared(root)
        return of_the_cluster()
