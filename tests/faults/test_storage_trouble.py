"""A run whose store is an object store that throttles, fails and is slow: S3 by a server of our own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from broken_run import BrokenRun
from tiny_run import arguments, write_text
from troubled_store import Trouble, troubled_store
from waiting import eventually

from orchestrator.checkpoints.names import committed_steps
from orchestrator.storage.store import Storage


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Trouble]:
    """Yield an S3 server that a run finds by the environment, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with troubled_store(monkeypatch) as store:
        yield store


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def on_s3(text: Path, trouble: Trouble, *others: str) -> list[str]:
    settings = ["run.name=tiny", "tracking.mode=disabled", f"storage.root={trouble.root}"]
    return arguments(text, Path("unused"), *settings, *others)


def weights(storage: Storage) -> bytes:
    return storage.read_bytes("runs/tiny/model/model.safetensors")


@pytest.fixture(scope="module")
def expected(text: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the same run on a local disk."""
    root = tmp_path_factory.mktemp("local")
    with BrokenRun(arguments(text, root, "run.name=tiny", "tracking.mode=disabled")) as run:
        assert run.end() == 0, run.said
    return weights(Storage(str(root)))


@pytest.mark.long
def test_a_store_that_throttles_fails_and_is_slow_gives_the_same_run(
    text: Path, trouble: Trouble, expected: bytes
) -> None:
    trouble.refuse_every, trouble.delay_seconds = 7, 0.005
    with BrokenRun(on_s3(text, trouble)) as run:
        assert run.end() == 0, run.said
    assert trouble.refused > 3
    trouble.refuse_every = 0
    assert weights(Storage(trouble.root)) == expected


@pytest.mark.parametrize(
    ("workers", "path"),
    [
        (1, "train_00000.bin"),
        pytest.param(1, "data/", marks=pytest.mark.long),
        pytest.param(1, "step_00000010/state.json", marks=pytest.mark.long),
        pytest.param(2, "train_00000.bin", marks=pytest.mark.long),
        pytest.param(2, "step_00000010/rank_00000", marks=pytest.mark.long),
    ],
)
def test_store_that_is_away_when_it_is_needed_is_waited_for(
    text: Path, trouble: Trouble, expected: bytes, workers: int, path: str
) -> None:
    same = on_s3(text, trouble, "strategy=ddp", f"cluster.num_workers={workers}")
    if "step" in path:
        with BrokenRun(same) as run:
            assert run.end() == 0, run.said
        for results in ("checkpoints/step_00000020", "model", "metrics.json"):
            Storage(trouble.root).remove(f"runs/tiny/{results}")
    trouble.leave_at, trouble.away_seconds = path, 8
    with BrokenRun(same) as run:
        assert run.end() == 0, run.said
    assert trouble.leave_at == ""
    assert "restarting" not in run.said
    assert committed(trouble)[-1] == 20
    if workers == 1:
        assert weights(Storage(trouble.root)) == expected


def committed(trouble: Trouble) -> list[int]:
    return committed_steps(Storage(trouble.root), "tiny")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_run_killed_in_mid_upload_goes_on_from_the_checkpoint_before(
    text: Path, trouble: Trouble, expected: bytes, workers: int
) -> None:
    same = on_s3(text, trouble)
    where = ["strategy=ddp", f"cluster.num_workers={workers}"]
    trouble.held_path = "step_00000020/rank_00000"
    with BrokenRun([*same, *where]) as run:
        assert trouble.holds.wait(120), run.said
        run.process.kill()
        run.process.wait()
    trouble.held_path = ""
    trouble.release.set()
    assert committed(trouble) == [10]
    with BrokenRun(same) as run:
        assert run.end() == 0, run.said
    assert "continues from the checkpoint after step 10" in run.said
    if workers == 1:
        assert weights(Storage(trouble.root)) == expected


def test_denied_writes_fail_the_run_when_too_many_saves_have_failed_and_harm_no_checkpoint(
    text: Path, trouble: Trouble, expected: bytes
) -> None:
    often = ["checkpoint.interval_steps=5", "checkpoint.max_failed_saves=1"]
    trouble.status, trouble.refused_path = 403, "step_00000010/rank_00000"
    with BrokenRun(on_s3(text, trouble, *often, "training.log_interval_steps=1")) as run:
        run.wait_for(r"checkpoint not saved: worker 0: cannot write .*permission denied")
        # told after step 15, whose save then succeeds: one failure is no end
        assert run.end() == 0, run.said
    assert committed(trouble) == [15, 20]
    assert weights(Storage(trouble.root)) == expected


@pytest.mark.long
def test_store_that_takes_no_checkpoint_fails_the_run_with_its_reason(text: Path, trouble: Trouble) -> None:
    often = ["checkpoint.interval_steps=5", "checkpoint.max_failed_saves=1", "training.num_steps=300", "objective=clm"]
    with BrokenRun(on_s3(text, trouble, *often)) as run:
        run.wait_for_step(7)
        assert eventually(lambda: committed(trouble), seconds=60)
        trouble.status, trouble.refused_path = 403, "/rank_0000"
        assert run.end() == 1
    assert run.lines[-1].startswith("error: checkpoint not saved: worker 0: cannot write s3://")
    kept = committed(trouble)
    trouble.refused_path = ""
    with BrokenRun(on_s3(text, trouble, *often)) as run:
        run.wait_for(f"continues from the checkpoint after step {kept[-1]}$")


def test_full_disk_fails_the_run_and_harms_no_checkpoint(text: Path, tmp_path: Path) -> None:
    root = tmp_path / "local"
    settings = ["run.name=tiny", "tracking.mode=disabled", "training.num_steps=100000", "objective=clm"]
    same = arguments(text, root, *settings, "checkpoint.mode=sync", "checkpoint.max_failed_saves=1")
    with BrokenRun(same) as run:
        run.wait_for_step(12)
        run.process.terminate()
        assert run.end() == 143, run.said
    kept = committed_steps(Storage(str(root)), "tiny")
    with BrokenRun(same, largest_file_bytes=2**18) as run:
        assert run.end() == 1
    assert "checkpoint not saved: worker 0: cannot write" in run.said
    assert run.lines[-1].endswith("the disk is full; free space there or choose another storage.root")
    assert "Traceback" not in run.said
    assert committed_steps(Storage(str(root)), "tiny") == kept
    # what did not fit was taken away again
    assert not [path for path in root.glob("runs/tiny/checkpoints/*/rank_*") if path.stat().st_size == 2**18]
