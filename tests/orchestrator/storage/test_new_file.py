"""A file that is written once, whole."""

from pathlib import Path

import pytest

from orchestrator.errors import StorageError, UserError
from orchestrator.storage.new_file import NewFile


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
