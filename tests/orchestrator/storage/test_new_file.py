"""A file that is written once, whole."""

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError, UserError
from orchestrator.storage.new_file import NewFile, NewLines


@pytest.mark.parametrize(
    "form", ["{folder}/a/b.jsonl", "file://{folder}/a/b.jsonl", "memory://{folder}/a/b.jsonl", "b.jsonl"]
)
def test_it_is_there_once_it_is_written_and_then_not_replaced(form: str, empty_folder: Path) -> None:
    url = form.format(folder=empty_folder)
    file = NewFile(url, "output=")
    assert not list(empty_folder.iterdir())
    file.check_writable()
    assert not [path for path in empty_folder.rglob("*") if path.is_file()]
    file.write(b"one\n")
    with pytest.raises(UserError, match=r"^output=.*b\.jsonl: exists already, and is not replaced; name another"):
        NewFile(url, "output=")


def test_a_place_that_cannot_be_written_is_found_before_the_work(empty_folder: Path) -> None:
    Path("file").touch()
    with pytest.raises(StorageError, match="a file stands where a folder should be"):
        NewFile("file/a.jsonl", "output=").check_writable()


@pytest.mark.parametrize("url", ["https://host/a.jsonl?sig=hunter2", "s3://KEY:hunter2@bucket/a.jsonl"])
def test_a_url_that_holds_a_secret_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UserError) as caught:
        NewFile(url, "output=")
    assert "hunter2" not in str(caught.value)


def test_what_another_process_has_written_meanwhile_is_not_replaced(empty_folder: Path) -> None:
    file = NewFile("a.jsonl", "output=")
    Path("a.jsonl").write_text("theirs")
    with pytest.raises(UserError, match="exists already"):
        file.write(b"ours")
    assert Path("a.jsonl").read_text() == "theirs"


@pytest.mark.parametrize("url", ["folder/", "..", "memory://folder/"])
def test_a_folder_is_no_file(url: str) -> None:
    with pytest.raises(UserError, match="names a folder"):
        NewFile(url, "output=")


def test_lines_are_in_a_local_file_as_soon_as_they_are_added(empty_folder: Path) -> None:
    with NewLines("a/b.jsonl", "output=") as lines:
        lines.add("1\n")
        assert Path("a/b.jsonl").read_text() == "1\n"
        lines.add("2\n3\n")
        assert Path("a/b.jsonl").read_text() == "1\n2\n3\n"


def test_a_full_disk_leaves_whole_lines(empty_folder: Path) -> None:
    class Full:
        """A file that takes three bytes more, one at a time."""

        def __init__(self, file: Any) -> None:
            self._file, self._left = file, 3

        def write(self, data: Any) -> int:
            if not self._left:
                raise OSError(28, "No space left on device")
            self._left -= 1
            return self._file.write(data[:1])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> None:
            self._file.__enter__()

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

    with pytest.raises(StorageError, match=r"the disk is full"), NewLines("b.jsonl", "output=") as lines:
        lines.add('{"a": 1}\n')
        lines._file = Full(lines._file)
        lines.add('{"b": 2}\n')
    assert Path("b.jsonl").read_text() == '{"a": 1}\n'


def test_lines_for_a_store_that_fails_at_the_end_are_kept_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the store is away")

    monkeypatch.setattr(NewFile, "write", fail)
    lines = NewLines("memory://lines/a.jsonl", "output=")
    with pytest.raises(StorageError, match=r"the store is away; the lines are in (.*)") as caught, lines:
        lines.add("1\n")
    kept = Path(str(caught.value).rpartition(" ")[2])
    assert kept.read_text() == "1\n"
    os.unlink(kept)
