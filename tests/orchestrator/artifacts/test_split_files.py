"""The files of each split are found and checked before anything of them is read."""

from pathlib import Path

import pytest

from modules.config import DataConfig
from modules.data.stdlib_rows import PACKAGES
from modules.errors import InputError
from orchestrator.artifacts.split_files import find_split_files
from orchestrator.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train/a.jsonl", "train/b.csv.gz", "test.jsonl", "plain.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}\n')
    return tmp_path


def found(folder: Path, **paths: str) -> dict[str, list[str]]:
    named = {name: (str(folder / path),) for name, path in paths.items()}
    files = find_split_files(DataConfig.model_validate({"source": "files", **named}))
    return {split: [str(Path(file.name).relative_to(folder)) for file in of_split] for split, of_split in files.items()}


def test_each_split_has_the_files_that_its_setting_names(folder: Path) -> None:
    names = found(folder, path="train", test_path="test.jsonl")
    assert names == {"train": ["train/a.jsonl", "train/b.csv.gz"], "val": [], "test": ["test.jsonl"]}


@pytest.mark.parametrize("val_path", ["train/b.csv.gz", "train/../train/b.csv.gz", "train"])
def test_a_file_in_two_splits_is_refused(folder: Path, val_path: str) -> None:
    with pytest.raises(UserError, match=r"[ab]\.(jsonl|csv\.gz): among the files of data\.path and of data\.val_path"):
        found(folder, path="train", val_path=val_path)


def test_what_holds_no_rows_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"plain.txt: plain text has no rows with fields"):
        found(folder, path="train", test_path="plain.txt")
    with pytest.raises(UserError, match="missing.jsonl: matches no file"):
        found(folder, path="train", val_path="missing.jsonl")


def test_rows_of_the_standard_library_say_their_split_themselves() -> None:
    files = find_split_files(DataConfig())
    assert list(files) == ["train"]
    assert {file.name.partition("/")[0] for file in files["train"]} == set(PACKAGES)


def test_a_hub_data_set_has_no_files_of_its_own_here() -> None:
    assert find_split_files(DataConfig(source="huggingface", path=("owner/name",))) == {}
