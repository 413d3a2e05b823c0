from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.storage.store import Storage

Command = Callable[[], int]


@pytest.fixture
def prepare(tmp_path: Path) -> Command:
    text = tmp_path / "text.txt"
    text.write_text("What is prepared once is not prepared again. " * 50)
    words = [
        "prepare",
        "data=files",
        f"data.path={text}",
        "tokenizer=byte",
        "data.split=position",
        f"storage.root={tmp_path}/root",
    ]
    return lambda: main(words)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("train_00000.bin", truncated),
        ("train_00000.bin", flipped),
        ("data.json", emptied),
        ("tokenizer.json", Path.unlink),
    ],
)
def test_damaged_data_is_named_with_its_remedy(
    prepare: Command, file: str, harm: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare() == 0
    (folder,) = (tmp_path / "root/data").iterdir()
    harm(folder / file)
    capsys.readouterr()
    assert prepare() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {folder}: {file} ")
    assert said.err.endswith(f"when no run uses it, remove {folder}, and the same command prepares it anew\n")
    Storage(str(tmp_path / "root")).remove(f"data/{folder.name}")
    assert prepare() == 0


@pytest.mark.parametrize("file", ["manifest.json", "COMMITTED"])
def test_data_without_a_valid_commit_is_prepared_anew(prepare: Command, file: str, tmp_path: Path) -> None:
    assert prepare() == 0
    (folder,) = (tmp_path / "root/data").iterdir()
    before = (folder / file).read_bytes()
    emptied(folder / file)
    assert prepare() == 0
    assert (folder / file).read_bytes() == before
