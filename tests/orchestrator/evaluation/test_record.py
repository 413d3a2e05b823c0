"""evaluation.json: entries are merged, and none is lost."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from orchestrator.artifacts.model_folders import FoundModel, StoredFolder
from orchestrator.errors import DamagedFileError
from orchestrator.evaluation.record import FILE, EvaluationRecord
from orchestrator.storage.store import Storage


def record_of(folder: Path, *, commit: str | None = None) -> EvaluationRecord:
    found = FoundModel(StoredFolder(Storage(str(folder)), "model"), is_ours=False, commit=commit)
    return EvaluationRecord(found, Storage(str(folder / "outputs")))


def content(file: Path) -> dict:
    return json.loads(file.read_text())


def test_an_entry_replaces_that_of_its_key_and_leaves_the_others(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    record.add("a", {"metrics": {"x": 1}})
    record_of(tmp_path).add("b", {"metrics": {"x": 2}}, {"confusion.png": b"png"})
    record.add("a", {"metrics": {"x": 3}})
    written = content(tmp_path / "model" / FILE)
    assert {key: entry["metrics"] for key, entry in written.items()} == {"a": {"x": 3}, "b": {"x": 2}}
    assert written["a"]["written"].endswith("+00:00")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["confusion.png", FILE]


def test_no_entry_is_lost_when_several_write_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = EvaluationRecord._read

    def slowly(self: EvaluationRecord) -> dict:
        found = read(self)
        time.sleep(0.02)
        return found

    records = [record_of(tmp_path) for _ in range(6)]
    monkeypatch.setattr(EvaluationRecord, "_read", slowly)
    threads = [threading.Thread(target=one.add, args=(str(n), {})) for n, one in enumerate(records)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(tmp_path / "model" / FILE).keys() == set("012345")


def test_a_claim_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    claim = tmp_path / "model" / f".{FILE}.claim"
    claim.write_bytes(b"")
    os.utime(claim, (time.time() - 100, time.time() - 100))
    record.add("a", {})
    assert not claim.exists()


@pytest.mark.parametrize("commit", ["abc", None], ids=["from the hub", "cannot be written"])
def test_results_of_a_model_whose_folder_is_not_written_lie_in_the_storage_root(
    tmp_path: Path, commit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").write_text("a file, below which nothing can be written")
    record = record_of(tmp_path, commit=commit)
    record.add("a", {})
    (written,) = (tmp_path / "outputs").rglob(FILE)
    assert record.url == str(written)
    assert written.parent.parent.name == "evaluations"
    assert "model-" in written.parent.name


def test_a_damaged_file_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / FILE).write_text("{")
    with pytest.raises(DamagedFileError, match="evaluation.json: damaged .*; restore or remove it, and evaluate again"):
        record_of(tmp_path)
