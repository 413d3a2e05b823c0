"""Nodes that share no folder: the run lies in an S3 store alone, and continues on nodes that have seen none of it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def nodes_apart(*folders: Path) -> Iterator[RayNodes]:
    """Yield a cluster with a node for each folder, and a head of its own for the driver."""
    with ray_nodes(0) as nodes:
        for folder in folders:
            nodes.add_apart(folder)
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


def staged_bytes(folder: Path) -> int:
    """Return the bytes that a node's workers have left in their temporary folder, and check that no part is there."""
    kept = files_below(folder / "tmp")
    assert not any(path.suffix == ".safetensors" or "checkpoint-" in str(path) for path in kept)
    return sum(path.stat().st_size for path in kept)


@pytest.mark.parametrize(("strategy", "mode"), [("ddp", "sync"), ("zero3", "async")])
def test_run_without_a_shared_folder_is_whole_in_the_store_and_continues_where_every_node_is_new(
    tmp_path: Path, store: Trouble, monkeypatch: pytest.MonkeyPatch, strategy: str, mode: str
) -> None:
    text = write_text(tmp_path / "text.txt")
    with BrokenRun(command(text, tmp_path / "unbroken", f"strategy={strategy}", "cluster.num_workers=2")) as run:
        assert run.end() == 0, run.said
    storage = Storage(store.root)
    folders = [tmp_path / f"node_{number}" for number in range(4)]

    def command_on(nodes: RayNodes) -> list[str]:
        where = ["cluster=ray", f"cluster.address={nodes.address}", "cluster.num_workers=2", f"strategy={strategy}"]
        return [*command(text, Path("unused"), *where), f"storage.root={store.root}", f"checkpoint.mode={mode}"]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
    with nodes_apart(*folders[:2]) as nodes, BrokenRun(command_on(nodes)) as run:
        run.wait_for_step(25)
        run.process.send_signal(TERMINATE)
        assert run.end() == 143, run.said
    steps = committed_steps(storage, "tiny")
    assert len(steps) == 2
    for step in steps:
        check_is_whole(storage, step, world_size=2)
    for folder in folders[:2]:  # a worker on each: both have fetched the data, and neither has kept a part of the state
        assert any("gpt-orchestrator" in path.parts for path in files_below(folder))
        assert staged_bytes(folder) < 4096

    # the head, its driver and every worker's node are gone with what they had fetched
    for folder in (*folders[:2], tmp_path / "driver"):
        shutil.rmtree(folder, ignore_errors=True)  # the driver may have fetched nothing
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another driver"))
    with nodes_apart(*folders[2:]) as nodes, BrokenRun(command_on(nodes)) as run:
        assert run.end() == 0, run.said
    begins = EventLog(storage, "runs/tiny").read("begin")
    assert [(event["step"], event["world_size"]) for event in begins] == [(0, 2), (steps[-1], 2)]
    assert all(files_below(folder) for folder in folders[2:])
    assert max(map(staged_bytes, folders[2:])) < 4096
    weights = storage.read_bytes("runs/tiny/model/model.safetensors")
    assert weights == finished(tmp_path / "unbroken").weights
    assert not os.path.exists("unused")


def test_folder_that_a_node_does_not_share_is_refused_before_anything_is_written_and_by_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(tmp_path / "text.txt")
    (tmp_path / "driver").mkdir()
    # each process has a folder of its own there, as if it were on another machine; all nodes have this host's name
    root = "storage.root=/proc/self/cwd/outputs"
    with ray_nodes(1) as nodes:
        monkeypatch.chdir(tmp_path / "driver")
        where = ["cluster=ray", f"cluster.address={nodes.address}"]
        with BrokenRun([*command(text, Path("unused"), *where), root]) as run:
            code = run.end()
        with BrokenRun(["doctor", *where, root]) as doctor:
            doctor_code = doctor.end()
    assert code == 2, run.said
    assert "storage.root=/proc/self/cwd/outputs: a folder of this machine, which" in run.said
    assert list((tmp_path / "driver").iterdir()) == []
    assert doctor_code == 1
    assert "of the cluster does not see" in doctor.said, doctor.said
