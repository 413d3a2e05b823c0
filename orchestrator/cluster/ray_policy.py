"""The decisions of Ray Train's controller: how faults are counted, how many workers there are, and on which nodes."""

import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import state as cluster_state
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure
from ray.train.v2._internal.execution.scaling_policy import (
    AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError

from orchestrator.cluster.base import restart_event
from orchestrator.cluster.ray_mailbox import MailboxActor
from orchestrator.cluster.ray_worker import MovedWorkerError, ask_to_move

_NODE_ID = "ray.io/node-id"
_ANSWER_SECONDS = 1.0
_NUM_CALLERS = 64


class Failures(DefaultFailurePolicy):
    """Counts and reports faults and preemptions separately; workers that moved on purpose are neither."""

    def __init__(self, config: FailureConfig, mailbox: MailboxActor) -> None:
        super().__init__(config)
        self._mailbox = mailbox
        self._is_waiting = False

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide whether another attempt follows."""
        error = training_failed_error
        if _is_resize(error):
            return FailureDecision.RETRY
        if isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            return self._wait_for_room()
        self._is_waiting = False
        if isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupFailedError):
            # Ray Train would retry without limit if workers die while they start; a worker error is counted
            error = WorkerGroupError(str(error), {0: error.controller_failure})
        decision = super().make_decision(error)
        self._report(error, decision)
        return decision

    def _wait_for_room(self) -> FailureDecision:
        if not self._is_waiting:
            self._mailbox.put.remote({"kind": "note", "text": "waiting until the cluster has room for the workers"})
        self._is_waiting = True
        return FailureDecision.RETRY

    def _report(self, error: TrainingFailedError, decision: FailureDecision) -> None:
        preempted = _is_preemption_failure(error)
        events = [{"kind": "fault", "text": fault_text(error), "preempted": preempted}]
        if decision is FailureDecision.RETRY:
            events.append(self._restart(preempted))
        self._mailbox.put.remote(*events)  # in one call, because two calls may arrive in reverse order

    def _restart(self, preempted: bool) -> dict[str, Any]:
        if not preempted:
            return restart_event(self._worker_group_failures, self.failure_config.max_failures)
        limit = self.failure_config.max_preemption_failures
        return restart_event(self._preemption_failures, None if limit < 0 else limit, "preemption")


def _is_resize(error: TrainingFailedError) -> bool:
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return any(isinstance(failure, MovedWorkerError) for failure in failures) and not _is_preemption_failure(error)


def fault_text(error: TrainingFailedError) -> str:
    """Return the message of the worker that failed first, as far as that is known, instead of Ray's pages."""
    if isinstance(error, PreemptionError):
        ranks = ", ".join(map(str, error.preemption_info.preempted_ranks))
        return f"preempted: the node of worker rank {ranks} will be taken away"
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return ("preempted: " if _is_preemption_failure(error) else "") + _failure_text(error.worker_failures)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    return f"Ray Train's controller failed: {type(cause).__name__}: {cause}"


def _failure_text(failures: Mapping[int, Exception]) -> str:
    # dead actors first: workers that lost a peer fail as a consequence
    rank, failure = min(failures.items(), key=lambda item: (not isinstance(_cause(item[1]), RayActorError), item[0]))
    cause = _cause(failure)
    if isinstance(cause, RayActorError) and not isinstance(cause, MovedWorkerError):
        reason = re.search(r"The actor (?:is dead|died) because (.+?)[.\n]", str(cause))
        return f"worker rank {rank} is lost: {reason[1] if reason else _first_line(cause)}"
    notes = getattr(cause, "__notes__", ())
    return notes[0] if notes else f"worker rank {rank}: {_first_line(cause)}"


def _cause(failure: Exception) -> BaseException:
    if isinstance(failure, WorkerHealthCheckFailedError):
        return failure.health_check_failure
    return getattr(failure, "cause", None) or failure.__cause__ or failure


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def scaling_policy(config: ScalingConfig, mailbox: MailboxActor, worker_counts: Sequence[int]) -> ScalingPolicy:
    """Return the policy for a fixed or an elastic number of workers.

    Args:
        config: Ray Train's settings.
        mailbox: Receives the events of changes.
        worker_counts: The numbers of workers that a run may have, ascending.
    """
    return Elastic(config, mailbox, worker_counts) if config.elasticity_enabled else _Fixed(config)


class _Fixed(FixedScalingPolicy):
    """Keeps workers off nodes that are lost or draining."""

    def on_controller_start_worker_group(self, **_: Any) -> dict[str, str] | None:
        return label_selector_without(unusable_nodes())


class Elastic(ElasticScalingPolicy):
    """Starts only numbers of workers that can share out the batch, and lets workers save before theirs is changed.

    It also detects a lost node at once.
    """

    def __init__(self, config: ScalingConfig, mailbox: MailboxActor, worker_counts: Sequence[int]) -> None:
        super().__init__(config)
        self._mailbox, self._worker_counts = mailbox, worker_counts
        self._num_workers = 0
        self._in_use: frozenset[str] = frozenset()

    def on_controller_start_worker_group(self, **_: Any) -> dict[str, str] | None:
        return label_selector_without(unusable_nodes())

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(self.GET_RESERVED_RESOURCES_INTERVAL_S)  # the controller asks again without a pause
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Ask the workers to save and end where Ray Train would kill them; their new number is decided after that."""
        self._report_size(worker_group_state.num_workers)
        # the loss or preemption of a node in use is reported when its worker ends, so it is no reason to resize
        self._in_use = frozenset(worker.metadata.node_id for worker in worker_group_state.workers)
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        self._in_use = frozenset()
        if isinstance(decision, ResizeDecision):
            worker_group_state.workers[0].execute_async(ask_to_move)
        return NoopDecision()

    def _report_size(self, now: int) -> None:
        before, self._num_workers = self._num_workers or now, now
        if now != before:
            text = f"the run continues with {now} worker{'s' if now > 1 else ''} instead of {before}"
            self._mailbox.put.remote({"kind": "resize", "from": before, "to": now, "text": text})

    def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
        unusable = unusable_nodes() - self._in_use
        usable = {node: what for node, what in reserved_resources.items() if node not in unusable}
        room = super()._count_possible_workers(usable)
        return max((number for number in self._worker_counts if number <= room), default=0)

    def _get_reserved_resources(self) -> Any:
        """Request the cluster's current resources: the coordinator's cached answer is up to 20 seconds old."""
        now = time.monotonic()
        if now - self._latest_reserved_resources_query_time >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            self._latest_reserved_resources_query_time, self._latest_reserved_resources = now, None
            with suppress(RayError):  # the next call requests it again
                answer = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
                self._latest_reserved_resources = ray.get(answer, timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S)
        return self._latest_reserved_resources


def label_selector_without(nodes: Iterable[str]) -> dict[str, str] | None:
    """Return Ray's label selector that keeps workers away from these nodes; None where there are none."""
    listed = ",".join(sorted(nodes))
    return {_NODE_ID: f"!in({listed})"} if listed else None


def unusable_nodes() -> set[str]:
    """Return the draining nodes, and those that do not answer: Ray lists these as alive for another 15 seconds."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(_NUM_CALLERS) as pool:
        answers = [*pool.map(_answers, nodes)]
    silent = {node["NodeID"] for node, answer in zip(nodes, answers, strict=True) if not answer}
    return silent | set(cluster_state.get_draining_nodes())


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _ANSWER_SECONDS):
            return True
    except OSError:
        return False
