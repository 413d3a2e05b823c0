"""Prepared data tells the file and row of each document by names that hold no secret and no one's folders."""

import json
from pathlib import Path
from typing import Any

import pytest
from model_files import model_files

from modules.config import DataConfig, TokenizerConfig
from modules.tasks.settings import ClassificationConfig
from orchestrator.artifacts import artifact
from orchestrator.artifacts.opened_data import open_source_rows
from orchestrator.artifacts.prepared_data import DataRequirements, prepared_data
from orchestrator.artifacts.prepared_task import TaskRequest, prepared_task
from orchestrator.artifacts.source_rows import listed_names
from orchestrator.storage.store import Storage


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def quiet(total: int) -> Any:
    return lambda *done: None


def test_place_of_each_document_is_told_by_file_and_row(tmp_path: Path) -> None:
    storage = Storage(f"{tmp_path}/root")
    paths = [written(tmp_path / f"in/{f}/x.jsonl", [{"text": f"{f} {n}"} for n in range(3)]) for f in ("a", "b")]
    data = DataConfig(source="files", path=tuple(paths), val_fraction=0, num_processes=1)
    name = prepared_data(storage, data, TokenizerConfig(kind="byte"), DataRequirements(), quiet)
    rows = open_source_rows(storage, name, "train", 10**9)
    assert rows is not None
    places = [rows.place(number) for number in range(6)]
    assert [(rows.name(place), place.row) for place in places] == [(f"{f}/x.jsonl", n) for f in "ab" for n in range(3)]
    assert "rows" not in (tmp_path / "root" / name / "data.json").read_text()


def test_place_of_each_example_is_told_by_file_and_row(tmp_path: Path) -> None:
    storage, labels = Storage(f"{tmp_path}/root"), ("no", "yes")
    train = written(tmp_path / "train.jsonl", [{"text": f"t {n}", "label": labels[n % 2]} for n in range(4)])
    val = written(tmp_path / "val.jsonl", [{"text": f"v {n}", "label": labels[n % 2]} for n in range(2)])
    data = DataConfig(source="files", path=(train,), val_path=(val,))
    files = model_files("gpt2", eos_token="<|endoftext|>")
    name = prepared_task(storage, TaskRequest(ClassificationConfig(), data, files, 64), quiet).name
    for split, file, number in (("train", "train.jsonl", 4), ("val", "val.jsonl", 2)):
        rows = open_source_rows(storage, name, split, 10**9)
        assert rows is not None
        places = [rows.place(n) for n in range(number)]
        assert [(rows.name(place), place.row) for place in places] == [(file, n) for n in range(number)]


def test_data_that_an_earlier_version_prepared_tells_no_rows(tmp_path: Path) -> None:
    storage, folder = Storage(str(tmp_path)), tmp_path / "made"
    folder.mkdir()
    (folder / "data.json").write_text("{}")
    artifact.publish(storage, folder, "data/old", {"kind": "data"})
    assert open_source_rows(storage, "data/old", "train", 10**9) is None


@pytest.mark.parametrize(
    ("source", "names", "shown"),
    [
        ("files", ["https://user:secret@web.org/a.txt?sig=secret"], ["a.txt"]),
        ("files", ["https://user:secret@web.org/a.txt?sig=secret", "/b.txt"], ["https://***@web.org/a.txt", "/b.txt"]),
        ("huggingface", ["owner/name"], ["owner/name"]),
    ],
)
def test_names_hold_no_secret(source: Any, names: list[str], shown: list[str]) -> None:
    assert listed_names(DataConfig(source=source, path=("any",)), names) == {"source_files": shown}
