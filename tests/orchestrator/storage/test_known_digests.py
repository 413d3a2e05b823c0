"""The content of a local file is read once, and again as soon as it may have changed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.storage import known_digests
from orchestrator.storage.input_files import StoredFile, find_files

SETTLED = 1_700_000_000


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # tests cannot wait until the files that they write have settled
    monkeypatch.setattr(known_digests, "_SETTLED_NS", 0)
    found: list[str] = []
    opened = StoredFile.open

    def counted(file: StoredFile) -> object:
        found.append(file.name)
        return opened(file)

    monkeypatch.setattr(StoredFile, "open", counted)
    return found


def identity(path: Path) -> str:
    (file,) = find_files([str(path)])
    return file.identity()


def written(path: Path, content: bytes = b"abc") -> Path:
    path.write_bytes(content)
    os.utime(path, (SETTLED, SETTLED))
    return path


def test_a_file_is_read_once(reads: list[str], tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt")
    assert len({identity(path) for _ in range(3)}) == 1
    assert len(reads) == 1


def _same_size_and_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _same_size_and_second(path: Path) -> None:
    path.write_bytes(b"abd")
    os.utime(path, ns=(SETTLED * 10**9, SETTLED * 10**9 + 1))


def _another_in_its_place(path: Path) -> None:
    os.replace(written(path.with_name("other"), b"abd"), path)


@pytest.mark.parametrize("change", [_same_size_and_time, _same_size_and_second, _another_in_its_place])
def test_a_changed_file_is_noticed(change: Callable[[Path], None], reads: list[str], tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt")
    before = identity(path)
    change(path)
    assert identity(path) != before


def test_a_file_that_was_just_written_is_not_remembered(
    reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write within the same tick of the file system's clock changes none of its times."""
    monkeypatch.setattr(known_digests, "_SETTLED_NS", 10**12)
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    assert [identity(path), identity(path)] == 2 * [identity(path)]
    assert len(reads) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"state": 1}'])
def test_a_torn_record_is_no_record(content: bytes, reads: list[str], tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt")
    before = identity(path)
    for record in (tmp_path / "cache").rglob("digests/*"):
        record.write_bytes(content)
    assert identity(path) == before
    assert len(reads) == 2


def test_without_a_cache_folder_the_file_is_read_each_time(reads: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    path = written(tmp_path / "a.txt")
    assert identity(path) == identity(path)
    assert len(reads) == 2
