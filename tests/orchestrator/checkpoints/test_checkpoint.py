"""Checkpoints of a run: which is the newest complete one, and which are kept."""

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from store_requests import store_requests
from torch import Tensor

from orchestrator.artifacts import artifact
from orchestrator.artifacts.digests import digest_bytes
from orchestrator.checkpoints import checkpoint
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.names import begun_steps, committed_steps, folder_of, name_of
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.retention import Retention, prune
from orchestrator.checkpoints.saves import Saves
from orchestrator.distributed.layout import Layout, end_to_end
from orchestrator.distributed.training_state import MASTER, MOMENTS, Fragment, StateReader
from orchestrator.errors import ArtifactError, OtherCheckpointError, StorageError
from orchestrator.storage.store import Storage

RUN = "tiny"
SHAPES = {"w": [4, 2]}
FORMAT_2 = Path(__file__).resolve().parents[2] / "fixtures" / "checkpoint_of_format_2.tar.gz"
"""Made by commit 6f755bb: three ranks with a share of each of two parameters, whose values tell their places."""


class State:
    """A training state of eight weights."""

    def __init__(self, value: float) -> None:
        self.weights: Tensor = torch.full((8,), value)

    def owned(self) -> Iterator[Fragment]:
        yield Fragment("w", MASTER, 0, 8, self.weights)

    def layout(self) -> Layout:
        return [end_to_end({"w": 8}, 1)]

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        reader.fill(self.owned())

    def complete(self) -> None:
        """Nothing else is held."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def committed(storage: Storage, *steps: int) -> None:
    """Save at each step a state whose weights equal the step; all are kept."""
    saves = Saves(storage, Attempt(RUN, 0, ""), "sync")
    for step in steps:
        saves.begin(State(step), SHAPES, Progress(step, 10 * step), Retention(keep_last=100))
        assert saves.finish() is None


def restored(storage: Storage, said: list[str] | None = None, at_most: int | None = None) -> float | None:
    """Return the value of the weights that a run continues from."""
    state = State(-1)
    progress = checkpoint.restore(storage, RUN, state, SHAPES, (said if said is not None else []).append, at_most)
    return None if progress is None else state.weights.unique().item()


def damage(storage: Storage, step: int, file: str, change: str) -> None:
    name = f"{name_of(RUN, step)}/{file_named(storage, step, file)}"
    data = storage.read_bytes(name)
    changed = {
        "cut off": data[: len(data) // 2],
        "emptied": b"",
        "longer": data + b" ",
        "with a flipped bit": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        "foreign": bytes(reversed(data)),
        "missing": None,
    }[change]
    if changed is None:
        storage.remove(name)
    else:
        storage.write_bytes(name, changed)


def file_named(storage: Storage, step: int, kind: str) -> str:
    """Return the name of the only file of its kind in a checkpoint."""
    (name,) = (name for name in storage.list(name_of(RUN, step)) if name.startswith(kind))
    return f"{name}/{storage.list(f'{name_of(RUN, step)}/{name}')[0]}" if kind == "parts-" else name


DAMAGES = [
    (file, change)
    for file in ("rank_00000", "parts-", "state.json", "manifest.json", "COMMITTED")
    for change in ("cut off", "emptied", "longer", "with a flipped bit", "foreign", "missing")
    # white space after the digest is ignored, and without COMMITTED there is no checkpoint
    if (file, change) not in {("COMMITTED", "longer"), ("COMMITTED", "missing")}
]


@pytest.mark.parametrize(("file", "change"), DAMAGES)
def test_the_newest_complete_checkpoint_is_used_whatever_the_damage(storage: Storage, file: str, change: str) -> None:
    committed(storage, 10, 20)
    damage(storage, 20, file, change)
    said: list[str] = []
    assert restored(storage, said) == 10
    assert len(said) == 1
    assert "skipped a damaged checkpoint" in said[0]
    assert "step_00000020" in said[0]


def test_without_a_commit_it_is_an_unfinished_save(storage: Storage) -> None:
    committed(storage, 10, 20)
    damage(storage, 20, "COMMITTED", "missing")
    said: list[str] = []
    assert restored(storage, said) == 10
    assert said == []


@pytest.mark.parametrize(("file", "change"), DAMAGES)
def test_no_whole_checkpoint_is_an_error_and_no_new_start(storage: Storage, file: str, change: str) -> None:
    committed(storage, 10, 20)
    for step in (10, 20):
        damage(storage, step, file, change)
    with pytest.raises(
        ArtifactError, match=r"no checkpoint of this run is whole: .*; restore one from a copy, or choose"
    ):
        restored(storage)


def test_a_store_that_cannot_be_read_is_not_a_damaged_checkpoint(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(storage, 10, 20)

    def failing(*_: object) -> None:
        raise StorageError("no answer in 6 attempts")

    monkeypatch.setattr(Storage, "read_into", failing)
    with pytest.raises(StorageError, match="no answer"):
        restored(storage)
    assert committed_steps(storage, RUN) == [10, 20]


@pytest.mark.parametrize("shapes", [{"w": [2, 4]}, {"w": [4, 2], "b": [2]}, {"v": [4, 2]}])
def test_shapes_are_compared_before_anything_is_read(
    storage: Storage, shapes: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(storage, 10)
    monkeypatch.setattr(Storage, "read_into", lambda *_: pytest.fail("read"))
    with pytest.raises(OtherCheckpointError, match="the model has it"):
        checkpoint.restore(storage, RUN, State(0), shapes, lambda _: None)


def rewritten(storage: Storage, step: int, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a file of a checkpoint as another version of this program would have written it, with all digests."""
    name = name_of(RUN, step)
    content = json.loads(storage.read_bytes(f"{name}/{file}"))
    change(content)
    storage.write_bytes(f"{name}/{file}", json.dumps(content).encode())
    if file == "state.json":
        entry = asdict(digest_bytes(storage.read_bytes(f"{name}/state.json")))
        rewritten(storage, step, "manifest.json", lambda manifest: manifest["files"].update({"state.json": entry}))
    else:
        artifact.write_commit(storage, name)


OTHER_VERSIONS = {
    "an older format": ("manifest.json", lambda manifest: manifest.update(format=1)),
    "a newer format": ("manifest.json", lambda manifest: manifest.update(format=99)),
    "no format": ("manifest.json", lambda manifest: manifest.pop("format")),
    "other chunks": ("manifest.json", lambda manifest: manifest.update(chunk_bytes=1024)),
    "no layout": ("manifest.json", lambda manifest: manifest.pop("layout")),
    "a new field of layout": ("manifest.json", lambda manifest: manifest["layout"][0].update(from_the_future=1)),
    "no weights": ("manifest.json", lambda manifest: manifest.update(world_size=0)),
    "a new field of state": ("state.json", lambda state: state.update(from_the_future=1)),
    "a missing field of state": ("state.json", lambda state: state.pop("guard")),
    "another model": ("manifest.json", lambda manifest: manifest["shapes"].update(w=[2, 4])),
}


@pytest.mark.parametrize("what", OTHER_VERSIONS)
def test_checkpoint_of_another_version_stops_the_run_and_takes_no_commit(storage: Storage, what: str) -> None:
    committed(storage, 10, 20, 30)
    rewritten(storage, 30, *OTHER_VERSIONS[what])
    with pytest.raises(OtherCheckpointError, match=r"step_00000030: .*choose another run\.name"):
        restored(storage)
    damage(storage, 30, "rank_00000", "missing")
    rewritten(storage, 20, *OTHER_VERSIONS[what])
    with pytest.raises(OtherCheckpointError, match=r"step_000000[23]0: "):
        restored(storage)
    assert committed_steps(storage, RUN) == [10, 20, 30]


@pytest.mark.parametrize("what", OTHER_VERSIONS)
def test_older_checkpoint_of_another_version_disturbs_no_newer_one(storage: Storage, what: str) -> None:
    committed(storage, 10, 20)
    rewritten(storage, 10, *OTHER_VERSIONS[what])
    said: list[str] = []
    assert restored(storage, said) == 20
    assert said == []
    assert committed_steps(storage, RUN) == [10, 20]


def test_only_rank_0_reads_the_manifest_which_grows_with_the_number_of_workers(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(storage, 10)
    answers: list[Any] = []
    with monkeypatch.context() as rank_0:
        rank_0.setattr(checkpoint, "from_rank_0", lambda action: answers.append(action()) or answers[-1])
        assert restored(storage) == 10
    for file in (artifact.MANIFEST, artifact.COMMITTED, "state.json"):
        storage.remove(f"{name_of(RUN, 10)}/{file}")
    monkeypatch.setattr(checkpoint, "from_rank_0", lambda action: answers.pop(0))
    assert restored(storage) == 10


def test_checkpoint_of_the_earlier_format_is_read_by_any_ranges(storage: Storage, tmp_path: Path) -> None:
    with tarfile.open(FORMAT_2) as archive:
        archive.extractall(tmp_path, filter="data")
    opened = checkpoint.open_checkpoint(storage, name_of(RUN, 10))
    assert (opened.progress, opened.shapes) == (Progress(10, 100), {"a": [7, 5], "b": [11]})
    for number, (name, size) in enumerate({"a": 35, "b": 11}.items()):
        for moment, kind in enumerate((MASTER, *MOMENTS)):
            whole = torch.arange(size) + 100.0 * number + 1000 * moment
            for start, stop in ((0, size), (3, 10), (size - 1, size)):
                assert torch.equal(opened.reader.read(name, kind, start, stop), whole[start:stop])
    damage(storage, 10, "rank_00002", "with a flipped bit")
    with pytest.raises(ArtifactError, match="rank_00002.*damaged"):
        opened.reader.read("b", MASTER, 0, 11)


def test_progress_survives_its_file(storage: Storage) -> None:
    committed(storage, 10)
    assert checkpoint.open_checkpoint(storage, name_of(RUN, 10)).progress == Progress(10, 100)


def test_other_paths_are_not_taken_for_checkpoints(storage: Storage) -> None:
    committed(storage, 10)
    for name in ("latest", "step_final", "step_20", "step_00000030.tmp"):
        storage.write_bytes(f"{folder_of(RUN)}/{name}/COMMITTED", b"")
    assert committed_steps(storage, RUN) == [10]


def test_a_run_without_checkpoints_starts_anew(storage: Storage) -> None:
    assert restored(storage) is None


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(keep_last=2, keep_every_steps=40), {40, 80, 90, 100}),
        (Retention(keep_last=1), {100}),
        (Retention(keep_last=1, keep_best=2, scores={20: 0.5, 30: 0.7, 70: 0.1}), {20, 70, 100}),
        (Retention(keep_last=1, keep_best=2, scores={100: 0.1, 15: 0.0}), {100}),
    ],
)
def test_the_newest_is_kept_and_what_else_was_requested(storage: Storage, retention: Retention, kept: set[int]) -> None:
    assert retention.keeps(list(range(10, 110, 10)), lambda _: True) == kept


def test_what_is_not_kept_is_removed_and_unfinished_saves_before_the_newest(storage: Storage) -> None:
    committed(storage, *range(10, 110, 10))
    for step in (20, 100):
        damage(storage, step, "COMMITTED", "missing")
    prune(storage, RUN, Retention(keep_last=2, keep_every_steps=40))
    assert committed_steps(storage, RUN) == [40, 80, 90]
    assert begun_steps(storage, RUN) == [40, 80, 90, 100]


def test_the_newest_before_bad_steps_are_kept_until_a_good_step(storage: Storage) -> None:
    committed(storage, *range(10, 110, 10))
    prune(storage, RUN, Retention(keep_last=2, good_step=65))
    assert committed_steps(storage, RUN) == [50, 60, 90, 100]


def test_requests_of_a_save_and_of_a_restart_do_not_grow_with_the_checkpoints_that_are_kept(
    storage: Storage,
) -> None:
    committed(storage, 200)
    found = []
    for earlier in (range(100, 105), range(105, 155)):
        for step in earlier:
            storage.write_bytes(f"{name_of(RUN, step)}/COMMITTED", b"")
        retention = Retention(keep_last=2, keep_every_steps=1, keep_best=1, scores={101: 0.5}, good_step=200)
        with store_requests() as requests:
            prune(storage, RUN, retention)
            assert restored(storage) == 200
            checkpoint.discard_after(storage, RUN, 200)
        found.append(Counter(requests))
    # what is read are commit, manifest, state and the index of the one file
    assert found[0] == found[1] == {"list": 3, "exists": 5, "read_bytes": 4}
    assert len(begun_steps(storage, RUN)) == 56


def test_checkpoints_that_a_rollback_has_discarded_are_removed_although_their_steps_are_kept(storage: Storage) -> None:
    retention = Retention(keep_every_steps=10)
    committed(storage, *range(10, 60, 10))
    prune(storage, RUN, retention)
    checkpoint.discard_after(storage, RUN, 20)
    committed(storage, 25)
    prune(storage, RUN, retention)
    assert begun_steps(storage, RUN) == [10, 20, 25, 30, 40, 50]  # what is later may be being written
    committed(storage, 30, 55)
    prune(storage, RUN, retention)
    assert begun_steps(storage, RUN) == committed_steps(storage, RUN) == [10, 20, 30, 55]


def test_a_failed_removal_stops_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(storage, 10, 20, 30, 40)
    remove = artifact.remove

    def failing(storage: Storage, name: str) -> None:
        if name.endswith("10"):
            raise StorageError("permission denied")
        remove(storage, name)

    monkeypatch.setattr(artifact, "remove", failing)
    prune(storage, RUN, Retention(keep_last=1))
    assert committed_steps(storage, RUN) == [10, 40]


def test_no_checkpoint_after_the_last_good_step_is_restored(storage: Storage) -> None:
    committed(storage, 10, 20, 30)
    assert [restored(storage, at_most=step) for step in (25, 20, 9)] == [20, 20, None]
    damage(storage, 20, "rank_00000", "missing")
    assert restored(storage, at_most=25) == 10
    damage(storage, 10, "rank_00000", "missing")
    with pytest.raises(ArtifactError, match="is whole"):
        restored(storage, at_most=25)


def test_steps_after_the_restored_one_lose_their_commit(storage: Storage) -> None:
    committed(storage, 10, 20, 30)
    checkpoint.discard_after(storage, RUN, 10)
    assert committed_steps(storage, RUN) == [10]
