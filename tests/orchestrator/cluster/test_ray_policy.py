"""What Ray Train's controller decides, without a cluster: it distinguishes and counts faults, preemptions, resizes."""

import socket
import types
from typing import Any

import pytest

from orchestrator.configuration.commands import TrainingRunConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

RETRY, RAISE = "RETRY", "RAISE"


class FakeMailbox:
    """Keeps what the controller reports."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.put = self

    def remote(self, *events: dict[str, Any]) -> None:
        self.events += events

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


@pytest.fixture
def mailbox() -> FakeMailbox:
    return FakeMailbox()


def test_controller_reads_settings_in_which_the_job_is_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cluster import ray_trainer

    monkeypatch.setattr(ray_trainer.ray, "put", lambda job: f"reference to the job of {job.run.name}")
    job: Any = types.SimpleNamespace(config=TrainingRunConfig(), run=types.SimpleNamespace(name="tiny"))
    trainer = ray_trainer.trainer_of(job, [2], False, "mailbox", "folder")
    assert trainer.train_run_context.train_loop_config["job"] == "reference to the job of tiny"


def failures(mailbox: FakeMailbox, max_failures: int = 1, max_preemptions: int = -1) -> Any:
    from ray.train import FailureConfig

    from orchestrator.cluster.ray_policy import Failures

    return Failures(FailureConfig(max_failures=max_failures, max_preemption_failures=max_preemptions), mailbox)


def worker_failed(**by_rank: Exception) -> Exception:
    from ray.train.v2.api.exceptions import WorkerGroupError

    return WorkerGroupError("", {int(rank.removeprefix("rank")): error for rank, error in by_rank.items()})


def lost(reason: str = "its node has died", preempted: bool = False) -> Exception:
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    text = f"The actor died unexpectedly.\n\tpid: 1\nThe actor is dead because {reason}. Worker exit type: SYSTEM_ERROR"
    return WorkerHealthCheckFailedError("A worker health check failed.", RayActorError(None, text, False, preempted))


def moved(preempted: bool) -> Exception:
    from orchestrator.cluster.ray_worker import MovedWorkerError

    return MovedWorkerError("saved after step 7", preempted)


def not_started() -> Exception:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    from ray.train.v2.api.exceptions import ControllerError

    return ControllerError(WorkerGroupStartupFailedError("a worker died"))


def no_room() -> Exception:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    return ControllerError(WorkerGroupStartupTimeoutError(num_workers=2))


def node_is_preempted() -> Exception:
    from ray.train.v2.api.exceptions import PreemptionError
    from ray.train.v2.api.preemption import PreemptionInfo

    return PreemptionError(PreemptionInfo(None, {"node": [1, 3]}))


def test_fault_is_reported_once_with_its_restart_until_the_budget_is_spent(mailbox: FakeMailbox) -> None:
    policy = failures(mailbox)
    assert [policy.make_decision(worker_failed(rank1=lost())).value for _ in range(2)] == [RETRY, RAISE]
    assert mailbox.kinds() == ["fault", "restart", "fault"]
    assert mailbox.events[0] == {
        "kind": "fault",
        "text": "worker rank 1 is lost: its node has died",
        "preempted": False,
    }
    assert mailbox.events[1]["text"] == "restarting from the last checkpoint (restart 1 of 1)"


def test_lost_worker_is_named_before_those_that_lost_their_peer(mailbox: FakeMailbox) -> None:
    failures(mailbox).make_decision(worker_failed(rank0=RuntimeError("connection closed"), rank3=lost()))
    assert mailbox.events[0]["text"] == "worker rank 3 is lost: its node has died"


@pytest.mark.parametrize("error", [node_is_preempted, lambda: worker_failed(rank0=moved(False), rank1=moved(True))])
def test_preemption_is_no_failure_and_has_a_budget_of_its_own(mailbox: FakeMailbox, error: Any) -> None:
    policy = failures(mailbox, max_failures=0, max_preemptions=2)
    assert [policy.make_decision(error()).value for _ in range(3)] == [RETRY, RETRY, RAISE]
    faults = [event for event in mailbox.events if event["kind"] == "fault"]
    assert all(event["preempted"] and event["text"].startswith("preempted: ") for event in faults)
    assert mailbox.events[1]["text"] == "restarting from the last checkpoint (preemption 1 of 2)"


def test_death_with_a_preempted_node_is_a_preemption_although_no_notice_came(mailbox: FakeMailbox) -> None:
    error = worker_failed(rank0=RuntimeError("connection closed"), rank1=lost(preempted=True))
    assert failures(mailbox, max_failures=0).make_decision(error).value == RETRY
    assert mailbox.events[0]["text"] == "preempted: worker rank 1 is lost: its node has died"


def test_workers_that_moved_for_another_size_are_no_fault(mailbox: FakeMailbox) -> None:
    error = worker_failed(rank0=moved(False), rank1=moved(False))
    assert failures(mailbox, max_failures=0).make_decision(error).value == RETRY
    assert mailbox.events == []


def test_workers_that_die_while_they_start_use_up_the_budget(mailbox: FakeMailbox) -> None:
    policy = failures(mailbox)
    assert [policy.make_decision(not_started()).value for _ in range(2)] == [RETRY, RAISE]
    assert mailbox.kinds() == ["fault", "restart", "fault"]


def test_waiting_for_room_is_reported_once_and_continues_without_end(mailbox: FakeMailbox) -> None:
    policy = failures(mailbox, max_failures=0)
    assert {policy.make_decision(no_room()).value for _ in range(5)} == {RETRY}
    assert mailbox.events == [{"kind": "note", "text": "waiting until the cluster has room for the workers"}]


def test_moved_worker_is_the_same_in_another_process() -> None:
    import pickle

    again = pickle.loads(pickle.dumps(moved(True)))
    assert str(again) == "saved after step 7"
    assert again.preempted


def test_workers_are_kept_from_nodes_that_do_not_answer_or_are_about_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cluster import ray_policy

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as closed:
        port, silent = server.getsockname()[1], closed.getsockname()[1]
        closed.close()
        nodes = [("alive", port, True), ("silent", silent, True), ("dead", silent, False), ("going", port, True)]
        listed = [
            {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port, "Alive": alive}
            for name, port, alive in nodes
        ]
        monkeypatch.setattr(ray_policy.ray, "nodes", lambda: listed)
        monkeypatch.setattr(ray_policy.cluster_state, "get_draining_nodes", lambda: {"going": 0})
        assert ray_policy.unusable_nodes() == {"silent", "going"}
    assert ray_policy.label_selector_without({"silent", "going"}) == {"ray.io/node-id": "!in(going,silent)"}
    assert ray_policy.label_selector_without(set()) is None


def elastic_policy(monkeypatch: pytest.MonkeyPatch, mailbox: FakeMailbox, counts: list[int]) -> Any:
    """Return the policy of a run whose cluster has `policy.room` free CPUs, two on each node."""
    from ray.train import ScalingConfig

    from orchestrator.cluster import ray_policy

    def nodes() -> dict[str, dict[str, float]]:
        cpus = [2.0] * (policy.room // 2) + [1.0] * (policy.room % 2)
        return {str(number): {"CPU": cpu} for number, cpu in enumerate(cpus)}

    scaling = ScalingConfig(num_workers=(counts[0], counts[-1]), elastic_resize_monitor_interval_s=0)
    policy: Any = ray_policy.scaling_policy(scaling, mailbox, counts)
    monkeypatch.setattr(ray_policy, "unusable_nodes", set)
    monkeypatch.setattr(ray_policy.time, "sleep", lambda _: None)
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", nodes)
    return policy


@pytest.mark.parametrize(
    ("asked", "batch", "expected"),
    [
        ([1, 8], 32, {0: None, 1: 1, 2: 2, 3: 2, 5: 4, 7: 4, 8: 8, 9: 8, 50: 8}),
        ([8, 16], 64, {1: None, 7: None, 8: 8, 15: 8, 16: 16, 17: 16}),
        ([8, 16], 60, {9: None, 10: 10, 11: 10, 14: 12, 16: 15}),
    ],
)
def test_elastic_run_starts_with_the_largest_number_of_workers_that_fits(
    asked: list[int],
    batch: int,
    expected: dict[int, int | None],
    mailbox: FakeMailbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from orchestrator.configuration.commands import PretrainConfig
    from orchestrator.configuration.rules import worker_counts

    config = PretrainConfig.model_validate(
        {"training": {"global_batch_size": batch}, "cluster": {"name": "ray", "num_workers": asked}}
    )
    policy = elastic_policy(monkeypatch, mailbox, worker_counts(config))
    started = {}
    for policy.room in expected:
        decision = policy.make_decision_for_non_running_worker_group()
        started[policy.room] = getattr(decision, "num_workers", None)
    assert started == expected


class FakeWorker:
    """Counts how often it was asked to move."""

    def __init__(self) -> None:
        self.metadata = types.SimpleNamespace(node_id="node")
        self.times_moved = 0

    def execute_async(self, _: Any) -> None:
        self.times_moved += 1


def test_elastic_run_moves_only_for_another_number_of_workers_that_fits(
    mailbox: FakeMailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = elastic_policy(monkeypatch, mailbox, [1, 2, 4, 8])
    group = types.SimpleNamespace(num_workers=4, workers=[FakeWorker()], start_time=0.0)
    moved_with = []
    for policy.room in (4, 5, 7, 8):
        before = group.workers[0].times_moved
        policy.make_decision_for_running_worker_group(group, None)
        moved_with += [policy.room] * (group.workers[0].times_moved - before)
    assert moved_with == [8]
