"""What Ray Train's controller decides, without a cluster: it distinguishes and counts faults, preemptions, resizes."""

import socket
from typing import Any

import pytest

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
