"""Nodes that share no folder: the run lies in an S3 store alone, and continues on nodes that have seen none of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from broken_run import TERMINATE, BrokenRun, command, finished
from ray_nodes import RayNodes, ray_nodes
from tiny_run import write_text
from troubled_store import Trouble, troubled_store

from orchestrator.artifacts.artifact import file_entries, read_manifest
from orchestrator.artifacts.digests import digest_bytes
from orchestrator.checkpoints.names import committed_steps, name_of
from orchestrator.runs.events import EventLog
from orchestrator.storage.store import Storage

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    with troubled_store(monkeypatch) as store:
        yield store


@pytest.fixture
def nodes(store: Trouble, tmp_path: Path) -> Iterator[RayNodes]:
    with ray_nodes(0) as nodes:
        for number in range(2):
            nodes.add_apart(tmp_path / f"node_{number}")
        yield nodes


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def check_is_whole(storage: Storage, step: int, world_size: int) -> None:
    """Check that a checkpoint has the part of each rank in the store, with the digests of its manifest."""
    name = name_of("tiny", step)
    entries = file_entries(read_manifest(storage, name))
    ranks = [file[:10] for file in entries if file.startswith("rank_")]
    assert sorted(ranks) == [f"rank_{rank:05d}" for rank in range(world_size)]
    for file, entry in entries.items():
        assert digest_bytes(storage.read_bytes(f"{name}/{file}")) == entry


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_run_without_a_shared_folder_is_whole_in_the_store_and_continues_on_other_nodes(
    tmp_path: Path, store: Trouble, nodes: RayNodes, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    text = write_text(tmp_path / "text.txt")
    with BrokenRun(command(text, tmp_path / "unbroken", f"strategy={strategy}", "cluster.num_workers=2")) as run:
        assert run.end() == 0, run.said
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
    where = ["cluster=ray", f"cluster.address={nodes.address}", "cluster.num_workers=2", f"strategy={strategy}"]
    same = [*command(text, Path("unused"), *where), f"storage.root={store.root}"]
    storage = Storage(store.root)

    with BrokenRun(same) as run:
        run.wait_for_step(25)
        run.process.send_signal(TERMINATE)
        assert run.end() == 143, run.said
    steps = committed_steps(storage, "tiny")
    assert len(steps) == 2
    for step in steps:
        check_is_whole(storage, step, world_size=2)
    for number in range(2):  # a worker on each: both have fetched the data, and neither has kept a part of the state
        kept = files_below(tmp_path / f"node_{number}")
        assert any("gpt-orchestrator" in path.parts for path in kept)
        assert not any(path.suffix == ".safetensors" for path in kept)

    for node in list(nodes.nodes):
        nodes.remove(node)
    for number in (2, 3):
        nodes.add_apart(tmp_path / f"node_{number}")
    with BrokenRun(same) as run:
        assert run.end() == 0, run.said
    begins = EventLog(storage, "runs/tiny").read("begin")
    assert [(event["step"], event["world_size"]) for event in begins] == [(0, 2), (steps[-1], 2)]
    assert all(files_below(tmp_path / f"node_{number}") for number in (2, 3))
    weights = storage.read_bytes("runs/tiny/model/model.safetensors")
    assert weights == finished(tmp_path / "unbroken").weights
    assert not os.path.exists("unused")
