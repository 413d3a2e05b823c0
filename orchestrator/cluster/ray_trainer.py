"""One training by Ray Train: its trainer with our policies, and the reason of its end."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from orchestrator.cluster.notices import Notices
from orchestrator.cluster.ray_mailbox import MailboxActor
from orchestrator.cluster.ray_policy import Failures, fault_text, scaling_policy
from orchestrator.cluster.ray_worker import WorkerNotices, work
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.distributed.runtime import Event
from orchestrator.errors import StoppedError, WorkerError, exit_code
from orchestrator.runs.processes import ProcessId
from orchestrator.runs.run import Job

_ABORT_SECONDS = 20


def trainer_of(job: Job, counts: Sequence[int], use_gpu: bool, mailbox: MailboxActor, ray_folder: str) -> "Trainer":
    """Return the trainer of a job.

    Args:
        job: What every worker trains.
        counts: The numbers of workers that the run may have, ascending.
        use_gpu: Whether each worker gets a GPU.
        mailbox: Receives the events of workers and controller.
        ray_folder: Where Ray Train keeps its own files.
    """
    config = job.config.cluster
    max_preemptions = config.max_preemptions
    # the job as a reference: the controller reads these settings as well, and would import all that a job is made of
    settings = {"job": ray.put(job), "mailbox": mailbox, "driver": ProcessId.of(os.getpid())}
    trainer = Trainer(
        work,
        train_loop_config=settings,
        scaling_config=_scaling(config, counts, use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=job.run.name,
            storage_path=ray_folder,  # Ray's own checkpoint transfer is not used (CONTRIBUTING, invariant 4)
            failure_config=FailureConfig(
                max_failures=config.max_failures,
                max_preemption_failures=-1 if max_preemptions is None else max_preemptions,
            ),
            callbacks=[WorkerNotices()],  # type: ignore[list-item]  # Ray Train accepts its internal ones as well
        ),
    )
    trainer.mailbox, trainer.worker_counts = mailbox, counts
    return trainer


def _scaling(config: ClusterConfig, counts: Sequence[int], use_gpu: bool) -> ScalingConfig:
    resources: dict[str, float] = {"CPU": config.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = 1
    fewest, most = counts[0], counts[-1]
    return ScalingConfig(
        num_workers=(fewest, most) if fewest < most else most,
        use_gpu=use_gpu,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=config.resize_interval_seconds,
    )


class Attempt:
    """Runs the training to its end, and finds out from its events why it ended."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._stop: StoppedError | None = None
        self._final: WorkerError | None = None
        self._hang: str | None = None
        self.trainer: Trainer | None = None

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


class Trainer(TorchTrainer):
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


def _worker_error(error: TrainingFailedError) -> WorkerError:
    return WorkerError(fault_text(error), details=str(error))
