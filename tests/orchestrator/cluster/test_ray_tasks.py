"""Work on the nodes of a Ray cluster, and what its drivers have reserved."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import RayNodes, ray_nodes
from waiting import eventually

from orchestrator.cluster import ray_tasks
from orchestrator.cluster.ray_tasks import Admission, RayTask, SharedLedger
from orchestrator.errors import LostNodeError


@pytest.fixture
def admission(monkeypatch: pytest.MonkeyPatch) -> Admission:
    monkeypatch.setattr(ray_tasks.ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    monkeypatch.setattr(ray_tasks, "_ended_jobs", lambda: {"02000000"})
    monkeypatch.setattr(ray_tasks, "_is_restarted", lambda: False)
    return Admission()


def test_two_drivers_never_reserve_more_than_there_is(admission: Admission) -> None:
    assert admission.take("one", {}, "base", 3, 0)
    assert not admission.take("two", {}, "base", 2, 0)
    assert admission.take("two", {}, "base", 1, 1)
    assert not admission.take("one", {"base": (3, 0)}, "other", 0, 1)
    admission.beat("one", {})
    assert admission.left() == (3.0, 0.0)


def test_a_driver_that_is_no_longer_heard_of_holds_nothing(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    assert admission.take("dead", {}, "base", 4, 0)
    monkeypatch.setattr(ray_tasks.time, "monotonic", lambda: now + ray_tasks.EXPIRY_SECONDS / 2)
    admission.beat("alive", {})
    assert not admission.take("alive", {}, "base", 1, 0)
    monkeypatch.setattr(ray_tasks.time, "monotonic", lambda: now + ray_tasks.EXPIRY_SECONDS + 1)
    assert admission.take("alive", {}, "base", 4, 0)


def test_a_driver_that_ray_knows_to_have_ended_holds_nothing_after_two_beats(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    assert admission.take("01000000-a", {}, "base", 1, 0)
    assert admission.take("02000000-b", {}, "base", 3, 0)
    assert admission.left() == (0.0, 1.0)
    monkeypatch.setattr(ray_tasks.time, "monotonic", lambda: now + 3 * ray_tasks.BEAT_SECONDS)
    assert admission.left() == (3.0, 1.0)


def test_one_that_was_started_again_admits_nobody_until_all_drivers_have_said_what_they_hold(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(ray_tasks.time, "monotonic", lambda: now)
    monkeypatch.setattr(ray_tasks, "_is_restarted", lambda: True)
    again = Admission()
    assert not again.take("new", {}, "base", 1, 0)
    again.beat("old", {"base": (3.0, 1.0)})
    monkeypatch.setattr(ray_tasks.time, "monotonic", lambda: now + 2 * ray_tasks.BEAT_SECONDS)
    assert not again.take("new", {}, "base", 2, 0)
    assert again.take("new", {}, "base", 1, 0)
    assert again.left() == (0.0, 0.0)


def test_a_reservation_whose_answer_was_lost_is_made_once(admission: Admission) -> None:
    assert admission.take("one", {}, "base", 3, 0)
    assert admission.take("one", {}, "base", 3, 0)
    assert not admission.take("one", {}, "base", 5, 0)
    assert admission.take("one", {}, "base", 3, 0)
    assert admission.left() == (1.0, 1.0)


class Work:
    """Runs until it is notified, and then ends with the number of the notice."""

    def __init__(self, folder: Path) -> None:
        self._notice, self._number = threading.Event(), 0
        (folder / "started").write_text("here", encoding="utf-8")

    def wait(self) -> int:
        self._notice.wait(100)
        return self._number

    def notify(self, number: int) -> None:
        self._number = number
        self._notice.set()


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    import ray

    with ray_nodes(1) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield cluster
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_work_on_a_cluster_is_notified_shared_and_lost_with_its_node(nodes: RayNodes, tmp_path: Path) -> None:
    def begun(name: str) -> RayTask[Path]:
        (tmp_path / name).mkdir()
        task = RayTask(Work, tmp_path / name)
        assert eventually((tmp_path / name / "started").exists, seconds=120)
        return task

    told = begun("told")
    told.notify(15)
    assert told.wait() == 15

    one, two = SharedLedger(), SharedLedger()
    assert one.take("base", 1, 0)
    assert not two.take("other", 1, 0), "the cluster has one CPU"
    one.close()
    assert two.take("other", 1, 0)
    two.close()

    ended = begun("ended")
    ended.kill()
    with pytest.raises(LostNodeError, match="the node of this stage is gone"):
        ended.wait()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_is_reserved_outlives_the_process_that_knows_it(nodes: RayNodes) -> None:
    import ray

    one, two = SharedLedger(), SharedLedger()
    assert one.take("base", 1, 0)
    actor = ray.get_actor(ray_tasks._ADMISSION, namespace=ray_tasks._NAMESPACE)
    ray.kill(actor, no_restart=False)  # as Ray's memory monitor ends it
    until = time.monotonic() + 3 * ray_tasks.BEAT_SECONDS
    while time.monotonic() < until:
        assert not two.take("other", 1, 0)
        time.sleep(0.5)
    assert eventually(lambda: two.left() == (0.0, 0.0), seconds=30)
    one.close()
    assert eventually(lambda: two.take("other", 1, 0), seconds=30)
    two.close()
