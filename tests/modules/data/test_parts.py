"""Parts of a text: kept as they are done, found again, and joined to the same bytes however the text is cut."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from modules.config import DataConfig, TokenizerConfig
from modules.data import file_groups as groups
from modules.data import learned_text, parts, pieces
from modules.data.encoder_pool import EncoderPool
from modules.data.file_groups import file_groups
from modules.data.learned_text import Work
from modules.data.part_store import LocalParts
from modules.data.prepare import prepare_tokens
from modules.data.shard_writer import SplitWriter
from modules.data.stdlib import LocalFile

DOCUMENTS = [f"Document {i} says größe " + f"word{i} " * (i % 50) for i in range(200)]
LONG = "It's a long story, told in many words; größe 123.\n\n" * 800
SETTINGS = {
    "bpe": ({"val_fraction": 0.2}, {"kind": "bpe", "vocab_size": 400}),
    "position": ({"split": "position", "val_fraction": 0.4, "max_bytes": 60_001}, {"kind": "byte"}),
    "bytes of tokens": ({"val_fraction": 0.3, "missing": "skip"}, {"kind": "char"}),
}
"""Each way in which something passes from one part to the next."""


class Source:
    """Files, and where the parts of their text are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = [json.dumps({"text": text}) + "\n" for text in (*DOCUMENTS, "")]
        contents = {"a.jsonl": "".join(rows[:90]), "b.txt": LONG, "c.jsonl": "".join(rows[90:])}
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8")
        self.files = [LocalFile(str(folder), name, (folder / name).stat().st_size) for name in contents]
        self._number = 0

    def prepared(self, name: str, progress: Callable[..., None] = lambda *_: None, **more: object) -> dict[str, bytes]:
        """Return the files that are prepared with one of SETTINGS."""
        self._number += 1
        out = self.folder / f"out{self._number}"
        out.mkdir()
        data, tokenizer = SETTINGS[name]
        config = DataConfig.model_validate({"missing": "skip", "num_processes": 1, **data, **more})
        work = Work(LocalParts(self.folder / "parts" / name, out))
        prepare_tokens(self.files, config, TokenizerConfig.model_validate(tokenizer), None, out, progress, work=work)
        return {path.name: path.read_bytes() for path in out.iterdir()}

    def kept(self, name: str) -> dict[str, int]:
        """Return when each part was kept."""
        records = (self.folder / "parts" / name).glob("*/record.json")
        return {record.parent.name: record.stat().st_mtime_ns for record in records}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(pieces, "BATCH_BYTES", 1000)
    monkeypatch.setattr(groups, "SMALLEST_GROUP_BYTES", 10)
    return Source(tmp_path)


@pytest.mark.parametrize("name", SETTINGS)
def test_shards_are_the_same_bytes_however_the_text_is_cut_into_parts(
    source: Source, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = []
    for size in (10**9, 7000, 1):
        monkeypatch.setattr(parts, "PART_BYTES", size)
        made.append((source.prepared(name), len(source.kept(name))))
    contents, counts = zip(*made, strict=True)
    assert contents[0] == contents[1] == contents[2]
    assert counts[0] <= 3 < counts[1] - counts[0] < counts[2] - counts[1]


@pytest.mark.parametrize("name", SETTINGS)
def test_interrupted_preparing_goes_on_with_the_parts_that_are_done(
    source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 5000)
    kept: dict[str, int] = {}
    for allowed in (12, 7, 5):
        calls = iter(range(allowed))

        def interrupt(*_: int, calls: Iterator[int] = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            source.prepared(name, interrupt)
        now = source.kept(name)
        assert kept.items() <= now.items()
        kept = now
    assert len(kept) > 4
    finished = source.prepared(name)
    assert kept.items() <= source.kept(name).items()
    assert f"data: goes on with {len(kept)} parts that are done already" in caplog.text
    shutil.rmtree(source.folder / "parts")
    assert source.prepared(name) == finished


@pytest.mark.parametrize("file", ["train_00000.bin", "train_document_rows.bin", "record.json"])
@pytest.mark.parametrize("harm", [lambda content: content[:-1], lambda content: content[:-1] + b"\x07"])
def test_part_that_is_damaged_is_made_again(source: Source, file: str, harm: Callable[[bytes], bytes]) -> None:
    whole, before = source.prepared("bpe"), source.kept("bpe")
    part = source.folder / "parts" / "bpe" / sorted(before)[1]
    (part / file).write_bytes(harm((part / file).read_bytes()))
    assert source.prepared("bpe") == whole
    now = source.kept("bpe")
    assert {name for name in now if now[name] != before[name]} == {part.name}


def test_processes_that_read_files_themselves_write_the_bytes_of_one(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = EncoderPool.encode
    monkeypatch.setattr(groups, "NUM_GROUPS", 10**6)
    monkeypatch.setattr(learned_text, "LEAST_BYTES", 1)
    monkeypatch.setattr(EncoderPool, "encode", None)  # whose processes are given text
    source.files *= 3  # of two processes none is left alone with the largest
    for name in ("bpe", "position"):
        with monkeypatch.context() as patch:
            patch.setattr(EncoderPool, "encode", encode)
            one = source.prepared(name)
        shutil.rmtree(source.folder / "parts")
        assert source.prepared(name, num_processes=2) == one


def test_groups_follow_from_the_files_and_hold_each_once_in_order() -> None:
    files = [LocalFile("", f"{number}.txt", 10 ** (3 + number % 6)) for number in range(200)]
    found = file_groups(files, DataConfig())
    assert [file for group in found for file in group.files] == files
    assert [group.first_file for group in found] == [files.index(group.files[0]) for group in found]
    assert all(len(group.files) == 1 or group.num_bytes <= groups.LARGEST_GROUP_BYTES for group in found)
    assert len({group.key for group in found}) == len(found)


def test_writers_of_parts_joined_write_what_one_writer_does(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    given = []
    for _ in range(60):
        count = int(numbers.integers(0, 5))
        spelt = numbers.integers(0, 90_000, size=count)  # more than the numbers in the file can hold
        given.append((numbers.integers(0, 99, size=count).astype("<u2"), int(spelt.sum()) + 7, spelt))
    ends = numbers.random(60) < 0.3

    def writer(folder: Path, inside: bool = False) -> SplitWriter:
        folder.mkdir()
        return SplitWriter(folder, "val", np.dtype("<u2"), 99, writes_token_bytes=True, inside_document=inside)

    whole, joined = writer(tmp_path / "whole"), writer(tmp_path / "joined")
    for first in range(0, 60, 7):
        part = writer(tmp_path / f"part{first}", first > 0 and not ends[first - 1])
        for number in range(first, min(first + 7, 60)):
            tokens, num_bytes, spelt = given[number]
            for one in (whole, part):
                one.add(tokens, num_bytes, bool(ends[number]), spelt)
        part.close()
        joined.append(tmp_path / f"part{first}", part.part_entry())
    whole.close()
    joined.close()
    assert whole.description() == joined.description()
    names = [path.name for path in (tmp_path / "whole").iterdir()]
    assert [(tmp_path / "joined" / name).read_bytes() for name in names] == [
        (tmp_path / "whole" / name).read_bytes() for name in names
    ]
