"""A pipeline on nodes that share no folder goes on when nodes are lost, and when new ones come."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broken_pipeline import PIPELINE_SECONDS, Stored
from broken_run import BrokenRun
from pipelines import write_eight_stages
from ray_nodes import RayNodes, ray_nodes
from troubled_store import Trouble, troubled_store
from waiting import eventually

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(7200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    with troubled_store(monkeypatch) as store:
        yield store


@pytest.fixture
def nodes(store: Trouble, tmp_path: Path) -> Iterator[RayNodes]:
    with ray_nodes(0) as nodes:
        for number in range(4):
            nodes.add_apart(tmp_path / f"node_{number}")
        yield nodes


def busy(run: BrokenRun, nodes: RayNodes, stored: Stored, num_done: int) -> Any:
    """Return a node on which a worker trains, as soon as so many stages are done."""

    def found() -> list[Any]:
        assert run.process.poll() is None, "the pipeline ended before it was disturbed"
        return [node for node in nodes.nodes if nodes.workers(node)] if len(stored.done()) >= num_done else []

    assert eventually(found, seconds=PIPELINE_SECONDS)
    return found()[0]


def test_pipeline_ends_with_the_same_weights_though_nodes_are_lost_one_after_the_other(
    tmp_path: Path, store: Trouble, nodes: RayNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = write_eight_stages(tmp_path / "eight")
    eight = ["run", "--config-dir", str(conf), "+pipeline=eight"]
    with BrokenRun([*eight, f"storage.root={tmp_path / 'undisturbed'}"]) as run:
        assert run.end(PIPELINE_SECONDS) == 0, run.said
    stored = Stored(store.root)
    stored.storage.write_bytes("text.txt", (tmp_path / "eight/text.txt").read_bytes())
    file = conf / "pipeline/eight.yaml"
    file.write_text(file.read_text().replace(str(tmp_path / "eight/text.txt"), stored.storage.url("text.txt")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))

    where = ["cluster=ray", f"cluster.address={nodes.address}", f"storage.root={store.root}"]
    with BrokenRun([*eight, *where]) as run:
        first = busy(run, nodes, stored, num_done=0)
        nodes.remove(next(node for node in nodes.nodes if node is not first and not nodes.workers(node)))
        nodes.lose(busy(run, nodes, stored, num_done=0))
        nodes.lose(busy(run, nodes, stored, num_done=2))
        nodes.add_apart(tmp_path / "node_new")
        nodes.lose(busy(run, nodes, stored, num_done=3))
        assert run.end(PIPELINE_SECONDS) == 0, run.said
    print(run.said, stored.starts(), stored.attempts(), sep="\n")
    assert len(stored.done()) == 8
    assert stored.results() == Stored(tmp_path / "undisturbed").results()
    assert set(stored.attempts().values()) == {1}, "the driver never lost a stage's lease"
