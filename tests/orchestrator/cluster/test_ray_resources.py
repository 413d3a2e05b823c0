"""Which of a cluster's resources a run gets, and on which clusters it does not start."""

import json
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster import ray_storage
from orchestrator.cluster.not_seen import not_seen
from orchestrator.cluster.ray_resources import Resources, check_resources, has_node_types, use_gpu
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.errors import HardwareError, UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def on(gpus: float, *, can_grow: bool = False, **settings: Any) -> bool:
    """Return whether two workers get GPUs on a cluster with four CPUs."""
    config, resources = ClusterConfig(name="ray", **settings), Resources({"CPU": 4, "GPU": gpus}, can_grow)
    check_resources(config, 2, resources)
    return use_gpu(config, 2, resources)


def test_workers_get_a_gpu_each_where_there_are_enough() -> None:
    assert [on(2), on(8), on(0), on(2, gpus_per_worker=0)] == [True, True, False, False]


@pytest.mark.parametrize("gpus_per_worker", [None, 1])
def test_cluster_with_too_few_gpus_never_means_the_cpu(gpus_per_worker: int | None) -> None:
    with pytest.raises(HardwareError, match=r"cluster.num_workers=2: .*1"):
        on(1, gpus_per_worker=gpus_per_worker)


def test_cluster_that_can_grow_is_not_refused_for_what_it_lacks_now() -> None:
    assert on(0, can_grow=True, gpus_per_worker=1)
    assert on(1, can_grow=True)
    assert not on(0, can_grow=True, gpus_per_worker=0, cpus_per_worker=50)
    with pytest.raises(HardwareError, match="8 CPUs"):
        on(0, gpus_per_worker=0, cpus_per_worker=4)


def test_cluster_that_may_get_gpus_is_not_trained_on_by_its_cpus_unasked() -> None:
    with pytest.raises(HardwareError, match="set cluster.gpus_per_worker=1, or 0 for CPU"):
        on(0, can_grow=True)


@pytest.mark.parametrize(
    ("report", "grows"),
    [
        (None, False),
        ({}, False),
        ({"active_nodes": {"node_18a0c576e94770aff60f28ad": 1}, "pending_launches": {}}, False),
        ({"active_nodes": {"ray.head.default": 1}, "idle_nodes": None}, True),
        ({"active_nodes": {"node_18a0": 1}, "pending_launches": {"gpu-group": 2}}, True),
    ],
)
def test_autoscaler_that_starts_nodes_is_told_from_one_that_only_watches(report: Any, grows: bool) -> None:
    assert has_node_types(json.dumps({"autoscaler_report": report}).encode()) is grows
    assert not has_node_types(None)


def node(name: str, *, host: str | None = None, alive: bool = True, cpus: float = 4) -> dict[str, Any]:
    return {"NodeManagerHostname": host or name, "NodeID": name, "Alive": alive, "Resources": {"CPU": cpus}}


def cluster(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], seeing: set[str]) -> list[str]:
    """Make a cluster of `nodes`, the driver on `here`, some of which see every file; return whom the probe asks."""
    asked: list[str] = []

    def blind(some: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
        assert path.exists()
        asked.extend(one["NodeID"] for one in some)
        return [one for one in some if one["NodeID"] not in seeing]

    monkeypatch.setattr(ray_storage.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_storage.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray_storage, "_blind", blind)
    return asked


def test_local_root_that_other_machines_do_not_see_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    nodes = [node("here"), node("a"), node("b", host="B"), node("b2", host="B"), node("c", alive=False)]
    asked = cluster(monkeypatch, [*nodes, node("head", cpus=0)], seeing={"a"})
    with pytest.raises(UserError) as refused:
        ray_storage.check_shared(str(root))
    assert asked == ["a", "b", "b2"]
    assert f"storage.root={root}: a folder of this machine, which B of the cluster does not see" in str(refused.value)
    assert list(tmp_path.rglob("*")) == []


def test_containers_with_the_name_of_this_host_are_asked_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = socket.gethostname()
    cluster(monkeypatch, [node("here", host=here), node("other", host=here)], seeing=set())
    with pytest.raises(UserError, match="does not see"):
        ray_storage.check_shared(str(tmp_path))


def test_root_that_all_see_or_that_is_no_folder_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = cluster(monkeypatch, [node("a"), node("b")], seeing={"a", "b"})
    ray_storage.check_shared(str(tmp_path))
    assert asked == ["a", "b"]
    ray_storage.check_shared("s3://bucket/outputs")
    assert asked == ["a", "b"]
    cluster(monkeypatch, [node("here")], seeing=set())
    ray_storage.check_shared(tempfile.gettempdir())


def test_many_machines_are_named_in_one_line() -> None:
    said = not_seen("/x", [f"host{number}" for number in range(100)])
    assert "host0, host1, host2 and 97 others of the cluster do not see" in said
