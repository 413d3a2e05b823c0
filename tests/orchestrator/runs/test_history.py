"""The figures of a run while it runs: each step once, and few requests to the store."""

import json
import logging
import math
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_run import arguments, go_back, write_text
from waiting import eventually

from orchestrator.cli import main
from orchestrator.errors import StorageError
from orchestrator.runs.history import History, _Parts, newest_figures, read_history
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage


class CountingStorage(Storage):
    """Counts its requests, and the bytes that are written."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.requests: Counter[str] = Counter()
        self.num_bytes = 0
        self.broken = False

    def write_bytes(self, name: str, data: bytes) -> None:
        self.requests["put"] += 1
        self.num_bytes += len(data)
        if self.broken:
            raise StorageError("no space left")
        super().write_bytes(name, data)

    def list(self, name: str = "", hidden: bool = False, folders_only: bool = False) -> list[str]:
        self.requests["list"] += 1
        return super().list(name, hidden, folders_only)

    def read_bytes(self, name: str) -> bytes:
        self.requests["get"] += 1
        return super().read_bytes(name)

    def remove(self, name: str) -> None:
        self.requests["remove"] += 1
        super().remove(name)


@pytest.fixture
def storage(tmp_path: Path) -> CountingStorage:
    return CountingStorage(f"memory://{tmp_path.name}")


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {"kind": "step", "step": number, "metrics": {"train/loss": loss}}


def attempt(storage: Storage, begin: int, *events: dict[str, Any], lease: int = 1) -> None:
    """Write what an attempt has come to, as its training would."""
    with History(storage, "runs/a", lease) as history:
        for event in ({"kind": "begin", "step": begin}, *events):
            history.record(event)


def losses(storage: Storage) -> dict[int, float]:
    return {entry.step: entry.metrics["train/loss"] for entry in read_history(storage, "a")}


def parts(storage: Storage) -> list[str]:
    return storage.list("runs/a/history")


def test_step_and_its_validation_are_one_entry_with_samples(storage: Storage) -> None:
    began = time.time()
    validation = {"kind": "validation", "step": 10, "metrics": {"val/loss": 2.5}, "samples": ["a\n<b>", "ä"]}
    attempt(storage, 0, step(10, 3.0), validation, step(20, math.inf))
    first, second = read_history(storage, "a")
    assert (first.step, first.metrics) == (10, {"train/loss": 3.0, "val/loss": 2.5})
    assert first.samples == ("a\n<b>", "ä")
    assert began <= first.time <= second.time <= time.time()
    assert math.isnan(second.metrics["train/loss"])
    assert json.loads(storage.read_bytes(f"runs/a/history/{parts(storage)[0]}").splitlines()[-1])["metrics"] == {
        "train/loss": None
    }


def test_newer_attempt_supersedes_the_steps_after_its_checkpoint(storage: Storage) -> None:
    attempt(storage, 0, *(step(n, 1.0) for n in (1, 2, 3, 4)))
    attempt(storage, 2, *(step(n, 2.0) for n in (3, 4, 5)))
    assert losses(storage) == {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0, 5: 2.0}


def test_rollback_in_the_same_process_removes_the_steps_that_it_undoes(storage: Storage) -> None:
    attempt(storage, 0, step(1), step(2), step(3), {"kind": "begin", "step": 1}, step(2, 5.0))
    assert losses(storage) == {1: 1.0, 2: 5.0}


def test_steps_that_were_undone_and_not_repeated_are_gone(storage: Storage) -> None:
    attempt(storage, 0, step(1), step(2), step(3))
    attempt(storage, 1)
    assert losses(storage) == {1: 1.0}


def test_restored_figures_fill_the_step_that_was_saved_and_not_reported_and_replace_none(storage: Storage) -> None:
    restored = {"kind": "restored", "step": 2, "metrics": {"train/loss": 7.0}}
    attempt(storage, 0, step(1))
    attempt(storage, 2, restored, step(3))
    assert losses(storage) == {1: 1.0, 2: 7.0, 3: 1.0}
    attempt(storage, 2, {**restored, "metrics": {"train/loss": 8.0}})
    assert losses(storage) == {1: 1.0, 2: 7.0}


def test_attempt_that_writes_after_it_was_replaced_changes_nothing(storage: Storage) -> None:
    with History(storage, "runs/a", 1) as old:
        old.record({"kind": "begin", "step": 0})
        old.record(step(1))
        old.record({"kind": "stop", "step": 1})
        attempt(storage, 1, step(2, 9.0), lease=2)
        for number in range(2, 1500):
            old.record(step(number, 5.0))
    assert losses(storage) == {1: 1.0, 2: 9.0}


def test_thousands_of_writes_leave_few_parts_and_write_bytes_in_proportion(storage: CountingStorage) -> None:
    """The smallest writes that there can be: one line at a time. Scaled down to what a test can afford."""
    written = {}
    for num_lines in (2000, 4000):
        store = CountingStorage(f"{storage.url()}/{num_lines}")
        writer = _Parts(store, "runs/a/history", 1)
        for number in range(num_lines):
            writer.write([{**step(number), "time": 0.0}])
        assert store.requests["put"] == num_lines
        assert store.requests["list"] == 1
        assert store.requests["remove"] <= 1 + num_lines / 31
        assert store.requests["get"] == 0
        assert len(parts(store)) <= 1 + num_lines // 1000
        assert [entry.step for entry in read_history(store, "a")] == list(range(num_lines))
        written[num_lines] = store.num_bytes
    assert written[4000] < 2.1 * written[2000]
    line = len(json.dumps({"order": [1, 1, 1000], **step(1000), "time": 0.0}))
    assert written[4000] < 35 * 4000 * line


def test_hundreds_of_short_attempts_leave_few_parts(storage: CountingStorage) -> None:
    for number in range(300):
        writer = _Parts(storage, "runs/a/history", 1)
        writer.write([{"kind": "begin", "step": number, "time": 0.0}, {**step(number + 1), "time": 0.0}])
    assert len(parts(storage)) <= 34
    assert storage.requests["put"] == 300
    assert [entry.step for entry in read_history(storage, "a")] == list(range(1, 301))


def test_training_writes_once_in_an_interval_and_waits_for_no_write(tmp_path: Path) -> None:
    storage, interval = CountingStorage(f"memory://{tmp_path.name}"), 0.1
    all_recorded, waited = threading.Event(), []
    write = storage.write_bytes

    def write_late(name: str, data: bytes) -> None:
        waited.append(all_recorded.wait(60))
        write(name, data)

    storage.write_bytes = write_late  # type: ignore[method-assign]
    began = time.monotonic()
    with History(storage, "runs/a", interval_seconds=interval) as history:
        for number in range(2000):
            history.record(step(number))
        all_recorded.set()
        for number in range(2000, 2020):
            history.record(step(number))
            time.sleep(0.02)
    assert all(waited)  # a recording that waits for a write would wait for itself
    assert storage.requests["put"] <= 2 + (time.monotonic() - began) / interval
    assert len(read_history(storage, "a")) == 2020


@pytest.mark.parametrize("event", [{"kind": "validation", "step": 1, "metrics": {}}, {"kind": "save", "step": 1}])
def test_validation_and_save_are_written_at_once(event: dict[str, Any], storage: Storage) -> None:
    with History(storage, "runs/a", interval_seconds=1000) as history:
        history.record(step(1))
        history.record(event)
        assert eventually(lambda: len(losses(storage)) == 1)


@pytest.mark.parametrize("kind", ["stop", "end"])
def test_last_event_is_written_before_the_call_returns(kind: str, storage: Storage) -> None:
    with History(storage, "runs/a", interval_seconds=1000) as history:
        history.record(step(1))
        history.record({"kind": kind, "step": 1})
        assert losses(storage) == {1: 1.0}


def test_failure_to_write_is_logged_and_nothing_is_lost_when_the_store_is_back(
    storage: CountingStorage, caplog: pytest.LogCaptureFixture
) -> None:
    storage.broken = True
    with History(storage, "runs/a", interval_seconds=1000) as history:
        history.record(step(1))
        history.record({"kind": "stop", "step": 1})
        storage.broken = False
        history.record(step(2))
    assert losses(storage) == {1: 1.0, 2: 1.0}
    assert "the history of the run was not written, and will be tried again: no space left" in caplog.text


def test_parts_that_are_merged_while_they_are_read_are_found(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(storage, 0, step(1))
    attempt(storage, 1, step(2))
    gone, read = [parts(storage)[0]], Storage.read_bytes

    def merged_meanwhile(self: Storage, name: str) -> bytes:
        if gone and name.endswith(gone[0]):
            content = read(self, name)
            self.remove(name)
            self.write_bytes("runs/a/history/000009-0000000001-000001.jsonl", content)
            gone.clear()
            raise NotFoundError(name)
        return read(self, name)

    monkeypatch.setattr(Storage, "read_bytes", merged_meanwhile)
    assert losses(Storage(storage.url())) == {1: 1.0, 2: 1.0}


def test_damaged_line_and_foreign_files_hide_no_other(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    attempt(storage, 0, step(1), step(2))
    (name,) = parts(storage)
    lines = storage.read_bytes(f"runs/a/history/{name}").splitlines()
    storage.write_bytes(f"runs/a/history/{name}", b"\n".join([*lines[:-1], b"[1]", b"{}", lines[-1][:20]]))
    storage.write_bytes("runs/a/history/notes.txt", b"mine")
    assert losses(storage) == {1: 1.0}
    assert caplog.text.count("a damaged line of a history was skipped") == 3


def test_newest_step_and_loss_cost_one_listing_and_one_read(storage: CountingStorage) -> None:
    attempt(storage, 0, *(step(n) for n in range(1, 1500)))
    attempt(storage, 1400, step(1401, 0.5), {"kind": "validation", "step": 1401, "metrics": {"val/loss": 1.0}})
    storage.requests.clear()
    assert newest_figures(storage, "a") == (1401, 0.5)
    assert storage.requests == {"list": 1, "get": 1}
    attempt(storage, 7)
    assert newest_figures(storage, "a") == (7, None)
    assert newest_figures(storage, "b") is None


@pytest.mark.slow
def test_continued_run_has_each_step_once_with_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = arguments(write_text(tmp_path / "text.txt"), tmp_path, "run.name=a", "tracking.num_samples=2")
    assert main(words) == 0
    before = read_history(Storage(str(tmp_path)), "a")
    assert [entry.step for entry in before] == list(range(1, 21))
    assert all(entry.metrics["progress/tokens"] == 256 * entry.step for entry in before)
    assert all("throughput/tokens_per_second" in entry.metrics for entry in before)
    assert [(entry.step, len(entry.samples)) for entry in before if entry.samples] == [(10, 2), (20, 2)]
    assert {"val/loss_clm", "train/loss"} <= before[9].metrics.keys()
    go_back(tmp_path / "runs/a", 10)
    assert main(words) == 0
    after = read_history(Storage(str(tmp_path)), "a")
    assert [entry.step for entry in after] == list(range(1, 21))
    assert [entry.metrics["train/loss"] for entry in after] == [entry.metrics["train/loss"] for entry in before]
    assert [entry.time for entry in after[:10]] == [entry.time for entry in before[:10]]
    assert after[10].time > before[-1].time
    assert caplog.records == [] or all(record.levelno < logging.WARNING for record in caplog.records)
