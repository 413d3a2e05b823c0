"""Checkpoints of a run: which is the newest whole one, and which are kept."""

import json
from pathlib import Path

import pytest

from orchestrator import artifact, checkpoint
from orchestrator.checkpoint_names import begun_steps, folder_of
from orchestrator.errors import ArtifactError, StorageError
from orchestrator.storage import Storage

RUN = "tiny"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def committed(storage: Storage, *steps: int) -> None:
    for step in steps:
        name = checkpoint.name_of(RUN, step)
        data = {"rank_00000.safetensors": b"weights" * step, "state.json": json.dumps({"step": step}).encode()}
        for file, content in data.items():
            storage.write_bytes(f"{name}/{file}", content)
        files = {file: artifact.digest_bytes(content) for file, content in data.items()}
        artifact.commit(storage, name, files, {"kind": "checkpoint"})


def damage(storage: Storage, step: int, file: str, data: bytes | None) -> None:
    name = f"{checkpoint.name_of(RUN, step)}/{file}"
    if data is None:
        storage.remove(name)
    else:
        storage.write_bytes(name, data)


DAMAGES = {
    "shard cut off": ("rank_00000.safetensors", b"weig"),
    "shard with a flipped bit": ("rank_00000.safetensors", b"weightt" + b"weights" * 19),
    "shard missing": ("rank_00000.safetensors", None),
    "shard of another run": ("rank_00000.safetensors", b"foreign" * 20),
    "state cut off": ("state.json", b"{"),
    "state missing": ("state.json", None),
    "manifest cut off": ("manifest.json", b'{"files": {'),
    "manifest of another form": ("manifest.json", b"[]"),
    "manifest missing": ("manifest.json", None),
    "commit of another manifest": ("COMMITTED", b"0" * 32),
    "commit empty": ("COMMITTED", b""),
    "commit missing": ("COMMITTED", None),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_newest_whole_checkpoint_is_taken_whatever_the_damage(storage: Storage, kind: str) -> None:
    committed(storage, 10, 20)
    damage(storage, 20, *DAMAGES[kind])
    said: list[str] = []
    assert checkpoint.newest_valid(storage, RUN, said.append) == checkpoint.name_of(RUN, 10)
    assert all("passed over a damaged checkpoint" in line and "step_00000020" in line for line in said)
    assert len(said) == (0 if kind == "commit missing" else 1)  # without a commit it is an unfinished save


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "commit missing"])
def test_no_whole_checkpoint_is_an_error_and_no_new_start(storage: Storage, kind: str) -> None:
    committed(storage, 10, 20)
    for step in (10, 20):
        damage(storage, step, *DAMAGES[kind])
    with pytest.raises(ArtifactError, match="no checkpoint of this run is whole"):
        checkpoint.newest_valid(storage, RUN, lambda _: None)


def test_what_is_no_checkpoint_is_not_looked_at(storage: Storage) -> None:
    committed(storage, 10)
    for name in ("latest", "step_final", "step_20", "step_00000030.tmp"):
        storage.write_bytes(f"{folder_of(RUN)}/{name}/COMMITTED", b"")
    assert checkpoint.steps_of(storage, RUN) == [10]


def test_a_run_without_checkpoints_starts_anew(storage: Storage) -> None:
    assert checkpoint.newest_valid(storage, RUN, lambda _: None) is None


def test_the_newest_and_those_at_every_so_many_steps_are_kept(storage: Storage) -> None:
    committed(storage, *range(10, 110, 10))
    checkpoint.prune(storage, RUN, keep_last=2, keep_every_steps=40, good_step=100)
    assert checkpoint.steps_of(storage, RUN) == [40, 80, 90, 100]
    assert begun_steps(storage, RUN) == [40, 80, 90, 100]


def test_the_newest_from_before_bad_steps_are_kept_as_long_as_these_last(storage: Storage) -> None:
    committed(storage, *range(10, 110, 10))
    checkpoint.prune(storage, RUN, keep_last=2, keep_every_steps=None, good_step=65)
    assert checkpoint.steps_of(storage, RUN) == [50, 60, 90, 100]


def test_a_failed_removal_stops_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(storage, 10, 20, 30, 40)
    remove = artifact.remove

    def failing(storage: Storage, name: str) -> None:
        if name.endswith("10"):
            raise StorageError("permission denied")
        remove(storage, name)

    monkeypatch.setattr(artifact, "remove", failing)
    checkpoint.prune(storage, RUN, keep_last=1, keep_every_steps=None, good_step=40)
    assert checkpoint.steps_of(storage, RUN) == [10, 40]


def test_no_checkpoint_after_the_last_good_step_is_gone_back_to(storage: Storage) -> None:
    committed(storage, 10, 20, 30)

    def newest(at_most: int) -> str | None:
        return checkpoint.newest_valid(storage, RUN, lambda _: None, at_most)

    assert [newest(25), newest(20)] == [checkpoint.name_of(RUN, 20)] * 2
    assert newest(9) is None
    damage(storage, 20, *DAMAGES["shard missing"])
    assert newest(25) == checkpoint.name_of(RUN, 10)
    damage(storage, 10, *DAMAGES["shard missing"])
    with pytest.raises(ArtifactError, match="is whole"):
        newest(25)


def test_a_checkpoint_from_before_there_were_rollbacks_opens() -> None:
    guard = {"grad_norms": [1.0], "num_skipped": 1, "num_in_a_row": 0}
    old = json.dumps({"step": 10, "tokens": 20, "loss_scale": None, "guard": guard}).encode()
    progress = checkpoint.Progress.from_json(old)
    assert (progress.step, progress.data_offset, progress.guard.num_rollbacks) == (10, 0, 0)
    assert checkpoint.Progress.from_json(progress.to_json()) == progress


def test_steps_after_the_one_gone_back_to_lose_their_commit(storage: Storage) -> None:
    committed(storage, 10, 20, 30)
    checkpoint.discard_after(storage, RUN, 10)
    assert checkpoint.steps_of(storage, RUN) == [10]
