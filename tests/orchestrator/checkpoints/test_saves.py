"""Saves in the training process and in the writer process: the same checkpoints, and a failed one does no damage."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from orchestrator.artifacts import artifact
from orchestrator.checkpoints import checkpoint, writer_process
from orchestrator.checkpoints.attempt import Attempt, lease_name
from orchestrator.checkpoints.background_writer import BackgroundWriter
from orchestrator.checkpoints.names import committed_steps, name_of
from orchestrator.checkpoints.parts import Part, commit_parts, error_of, store_part
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.retention import Retention
from orchestrator.checkpoints.saves import Saves
from orchestrator.checkpoints.snapshot import Snapshot
from orchestrator.distributed.layout import Layout, end_to_end
from orchestrator.distributed.training_state import MASTER, MOMENTS, Fragment, StateReader
from orchestrator.errors import RefusedError, StorageError
from orchestrator.storage.store import Storage

RUN = "tiny"
SIZE = 3_000_000
SHAPES = {"w": [SIZE]}


class State:
    """Weights, and moments from the first step on."""

    def __init__(self, value: float, has_moments: bool = True) -> None:
        kinds = (MASTER, *MOMENTS) if has_moments else (MASTER,)
        self.tensors = {kind: torch.full((SIZE,), value + number) for number, kind in enumerate(kinds)}

    def owned(self) -> Iterator[Fragment]:
        for kind, tensor in self.tensors.items():
            yield Fragment("w", kind, 0, SIZE, tensor)

    def layout(self) -> Layout:
        return [end_to_end({"w": SIZE}, 1)]

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        reader.fill(self.owned())

    def complete(self) -> None:
        """Nothing else is held."""

    def values(self) -> list[float]:
        return [tensor.unique().item() for tensor in self.tensors.values()]


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def saves(storage: Storage, mode: str) -> Iterator[Saves]:
    saves = Saves(storage, Attempt(RUN, 0, ""), mode)
    saves.prepare(State(0, has_moments=False))
    yield saves
    saves.close()


def begin(saves: Saves, state: State, step: int) -> None:
    saves.begin(state, SHAPES, Progress(step, step), Retention(keep_last=2))


def restored(storage: Storage) -> tuple[int, list[float]]:
    state = State(-1)
    progress = checkpoint.restore(storage, RUN, state, SHAPES, pytest.fail)
    assert progress is not None
    return progress.step, state.values()


def writers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "orchestrator.checkpoints.writer_process" in child.cmdline()]


def test_what_is_saved_is_the_state_at_its_step(saves: Saves, storage: Storage) -> None:
    state = State(10)
    begin(saves, state, 1)
    for tensor in state.tensors.values():
        tensor.zero_()  # the next step
    assert saves.finish() is None
    assert restored(storage) == (1, [10, 11, 12])


def test_repeated_saves_keep_no_more_than_requested(saves: Saves, storage: Storage) -> None:
    for step in range(1, 5):
        begin(saves, State(step), step)
        assert saves.finish() is None
    assert committed_steps(storage, RUN) == [3, 4]
    assert restored(storage) == (4, [4, 5, 6])


def test_failed_save_is_reported_and_the_next_one_succeeds(saves: Saves, storage: Storage) -> None:
    begin(saves, State(1), 1)
    assert saves.finish() is None
    storage.write_bytes(name_of(RUN, 2), b"a file where a folder should be")
    begin(saves, State(2), 2)
    assert "worker 0: cannot write" in str(saves.finish())
    storage.remove(name_of(RUN, 2))
    assert restored(storage)[0] == 1
    begin(saves, State(3), 3)
    assert saves.finish() is None
    assert restored(storage) == (3, [3, 4, 5])


@pytest.mark.parametrize("mode", ["async"], indirect=True)
def test_killed_writer_is_a_failed_save_and_is_replaced(saves: Saves, storage: Storage) -> None:
    (writer,) = writers()
    writer.suspend()
    begin(saves, State(1), 1)
    assert not saves.is_committed
    os.kill(writer.pid, signal.SIGKILL)
    assert "ended with code -9" in str(saves.finish())
    begin(saves, State(2), 2)
    assert saves.finish() is None
    assert restored(storage) == (2, [2, 3, 4])


@pytest.mark.parametrize("mode", ["async"], indirect=True)
def test_memory_is_not_written_while_the_writer_reads_it(saves: Saves, storage: Storage) -> None:
    (writer,) = writers()
    writer.suspend()
    begin(saves, State(1), 1)
    with pytest.raises(AssertionError, match="still reads the last save"):
        begin(saves, State(2), 2)
    writer.resume()
    assert saves.finish() is None
    assert restored(storage) == (1, [1, 2, 3])


@pytest.mark.parametrize("mode", ["async"], indirect=True)
def test_commit_is_known_without_waiting(saves: Saves, storage: Storage) -> None:
    begin(saves, State(1), 1)
    while not saves.is_committed:
        time.sleep(0.01)
    assert committed_steps(storage, RUN) == [1]
    assert saves.finish() is None


@pytest.mark.parametrize("mode", ["async"], indirect=True)
def test_closed_writer_leaves_no_process_and_no_commit(saves: Saves, storage: Storage) -> None:
    (writer,) = writers()
    writer.suspend()
    begin(saves, State(1), 1)
    writer.resume()
    saves.close()
    assert not writer.is_running()
    assert committed_steps(storage, RUN) == [] or restored(storage) == (1, [1, 2, 3])


@pytest.mark.parametrize("mode", ["async"], indirect=True)
def test_memory_is_allocated_once(saves: Saves) -> None:
    """The mappings that the kernel lists show address, size and file of the memory that both processes share."""

    def shared_memory() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:checkpoint" in line]

    begin(saves, State(1), 1)
    assert saves.finish() is None
    taken = shared_memory()
    begin(saves, State(2), 2)
    assert saves.finish() is None
    assert taken
    assert shared_memory() == taken


def test_store_in_the_memory_of_this_process_is_written_here(mode: str, tmp_path: Path) -> None:
    storage = Storage(f"memory://{tmp_path.name}-{mode}")
    saves = Saves(storage, Attempt(RUN, 0, ""), mode)
    begin(saves, State(5), 5)
    assert saves.finish() is None
    assert writers() == []
    assert restored(storage) == (5, [5, 6, 7])


def test_save_of_an_older_attempt_is_not_committed(saves: Saves, storage: Storage) -> None:
    begin(saves, State(1), 1)
    assert saves.finish() is None
    storage.write_bytes(lease_name(RUN, 1), b"{}")
    begin(saves, State(2), 2)
    error = saves.finish()
    assert isinstance(error, RefusedError)
    assert "another driver has taken over this run" in str(error)
    assert committed_steps(storage, RUN) == [1]


def test_attempt_that_is_replaced_between_manifest_and_commit_does_not_commit(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = artifact.write_manifest

    def replaced(*values: Any) -> Any:
        storage.write_bytes(lease_name(RUN, 1), b"{}")
        return write(*values)

    monkeypatch.setattr(artifact, "write_manifest", replaced)
    saves = Saves(storage, Attempt(RUN, 0, ""), "sync")
    begin(saves, State(1), 1)
    assert isinstance(saves.finish(), RefusedError)
    assert committed_steps(storage, RUN) == []


def test_removed_records_end_the_wait_for_other_ranks(storage: Storage) -> None:
    state = State(1)
    snapshot = Snapshot.of(state.owned())
    part = Part(name_of(RUN, 1), "a-1", 0, 2, snapshot.index)
    what = {"state": "{}", "shapes": SHAPES, "layout": [], "retention": asdict(Retention())}
    commit = {"attempt": asdict(Attempt(RUN, 0, "")), **what}
    writer = BackgroundWriter(storage)
    try:
        writer.start(part, snapshot, commit)
        assert writer.stored() is None
        storage.remove(part.folder)
        assert "was removed while the checkpoint was written" in str(writer.committed())
    finally:
        writer.close()


@dataclass
class Orders:
    """What the training has told its writer process."""

    expected: set[str]
    abandon: frozenset[str] = frozenset()


def test_save_whose_other_records_were_removed_is_given_up(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_process, "_STALE_SECONDS", 0.1)
    part = Part(name_of(RUN, 10), "id", 0, 2, {})
    store_part(storage, part, [memoryview(b"own")])  # the other worker's record was there before this one
    watchdog = threading.Timer(60, lambda: storage.remove(part.folder))  # what ends the wait without the mechanism
    watchdog.start()
    with pytest.raises(StorageError, match="was removed while the checkpoint was written"):
        writer_process._commit(storage, part, {}, Orders({part.folder}))  # type: ignore[arg-type]
    assert watchdog.is_alive()
    watchdog.cancel()


def test_records_that_were_removed_before_the_commit_fail_only_this_save(storage: Storage) -> None:
    part = Part(name_of(RUN, 10), "id", 0, 2, {})
    store_part(storage, part, [memoryview(b"own")])
    error = error_of(lambda: commit_parts(storage, part, "", {}, (), Attempt(RUN, 0, "")))
    assert type(error) is StorageError
    assert "was removed while the checkpoint was written" in str(error)
