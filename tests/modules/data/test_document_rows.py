"""Every prepared document is known by the file and the row that it comes from."""

import csv
import gzip
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from modules.config import DataConfig, TokenizerConfig
from modules.data import digested_file
from modules.data.document_rows import Place, names_within, rows_name
from modules.data.prepare import prepare_tokens
from modules.data.quality.sieve import Others
from modules.data.rows import Fields
from modules.data.shards import TokenData, TokenStream
from modules.data.splits import SplitRows
from modules.data.stdlib import LocalFile

LONG = " ".join(f"word{n}" for n in range(4000))
"""Longer than a piece."""


def texts_of(name: str, number: int, without: tuple[int, ...] = ()) -> list[str]:
    return ["" if n in without else f"{name} says {n}, e-mail a{n}@example.org " + "x " * n for n in range(number)]


TEXTS = [texts_of("jsonl", 40, (3, 4)), [LONG], texts_of("csv", 9), texts_of("parquet", 30, (0,)), texts_of("last", 5)]
"""By file; empty ones are rows without text."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[LocalFile]:
    folder = tmp_path_factory.mktemp("source")
    lines = "\n\n".join(json.dumps({"text": text or None}) for text in TEXTS[0])  # lines without a row between them
    table = io.StringIO()
    csv.writer(table).writerows([["text"], *([text] for text in TEXTS[2])])
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": [t or None for t in TEXTS[3]]}), parquet, row_group_size=7)
    array = json.dumps([{"text": text} for text in TEXTS[4]])
    contents = {
        "a.jsonl.gz": gzip.compress(lines.encode()),
        "b.txt": LONG.encode(),
        "c.csv": table.getvalue().encode(),
        "d.parquet": parquet.getvalue(),
        "e.json": array.encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [LocalFile(str(folder), name, len(content)) for name, content in contents.items()]


def prepared(folder: Path, source: list[LocalFile], **data: Any) -> TokenData:
    folder.mkdir()
    settings = DataConfig.model_validate({"num_processes": 1, "missing": "skip", **data})
    prepare_tokens(source, settings, TokenizerConfig(kind="byte"), None, folder, lambda *_: None, Others())
    return TokenData.open(folder)


def documents(data: TokenData, stream: TokenStream) -> list[str]:
    tokens = np.empty((1, len(stream)), dtype=np.int64)
    stream.fill(np.array([0]), len(stream), tokens)
    bounds = [*stream.document_starts[0 : len(stream.document_starts)].tolist(), len(stream)]
    return [data.tokenizer.decode(tokens[0][a : b - 1].tolist()) for a, b in pairwise(bounds)]


def places(folder: Path, split: str) -> list[list[int]]:
    return np.fromfile(folder / rows_name(split), dtype="<i8").reshape(-1, 2).tolist()


def changed(text: str) -> str:
    return text if "@" not in text else f"{text[: text.index(',')]}, e-mail <EMAIL> {text.partition('.org ')[2]}"


@pytest.mark.parametrize(
    ("data", "becomes"),
    [
        ({"val_fraction": 0.3}, str),
        ({"val_fraction": 0.3, "filters": {"min_words": 12}, "redact": {"kinds": ["email"]}}, changed),
    ],
    ids=["all", "filtered"],
)
def test_each_document_is_that_of_its_file_and_row(
    tmp_path: Path, source: list[LocalFile], data: dict[str, Any], becomes: Any
) -> None:
    made = prepared(tmp_path / "out", source, **data)
    found: list[list[int]] = []
    for split, stream in (("train", made.train), ("val", made.val)):
        of_split = places(tmp_path / "out", split)
        assert documents(made, stream) == [becomes(TEXTS[file][row]) for file, row in of_split]
        found += of_split
    least = data.get("filters", {}).get("min_words", 1)
    wanted = [[file, row] for file, rows in enumerate(TEXTS) for row, text in enumerate(rows)]
    assert sorted(found) == [[file, row] for file, row in wanted if len(TEXTS[file][row].split()) >= least]
    assert len(found) < len(wanted)


def test_document_that_a_split_cuts_is_at_the_same_place_on_both_sides(tmp_path: Path, source: list[LocalFile]) -> None:
    made = prepared(tmp_path / "out", source[:2], val_fraction=0.5, split="position", max_bytes=12_000)
    train, val = (documents(made, stream) for stream in (made.train, made.val))
    assert places(tmp_path / "out", "train")[-1] == places(tmp_path / "out", "val")[0] == [1, 0]
    assert LONG.startswith(train[-1] + val[0])


def test_places_have_digests_of_their_chunks(
    tmp_path: Path, source: list[LocalFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digested_file, "CHUNK_BYTES", 64)
    made = prepared(tmp_path / "out", source, val_fraction=0)
    content = (tmp_path / "out" / f"{rows_name('train')}.digests").read_bytes()
    assert len(content) == 8 * (1 + -(-16 * len(made.train.document_starts) // 64))


def test_rows_of_splits_are_counted_by_file(source: list[LocalFile]) -> None:
    rows = SplitRows(
        {"train": [source[0]], "val": [source[2]], "test": [source[3], source[4]]},
        DataConfig(source="files", path=("a",), split_field=None),
        Fields({}, {"text": "data.text_field"}),
    )
    assert rows.file_names == ["a.jsonl.gz", "c.csv", "d.parquet", "e.json"]
    of_file = [TEXTS[number] for number in (0, 2, 3, 4)]
    found = [(row.place, row.values["text"] or "") for _, row in rows]
    assert found == [(Place(file, n), text) for file, texts in enumerate(of_file) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("names", "within"),
    [
        (["/home/a/b.txt"], ["b.txt"]),
        (["s3://bucket/a/x.jsonl", "s3://bucket/a/x.csv"], ["x.jsonl", "x.csv"]),
        (["in/a/x.jsonl", "in/b/x.jsonl", "in/b/c/x.jsonl"], ["a/x.jsonl", "b/x.jsonl", "b/c/x.jsonl"]),
        (["s3://one/x.txt", "/data/x.txt"], ["s3://one/x.txt", "/data/x.txt"]),
        (["in/a", "in/a/b"], ["a", "a/b"]),
    ],
)
def test_files_are_named_within_the_folder_that_holds_all(names: list[str], within: list[str]) -> None:
    assert names_within(names) == within
