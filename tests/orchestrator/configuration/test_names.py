"""Names and texts that no file system and no tokenizer takes are refused before anything is written."""

from pathlib import Path
from typing import Any

import pytest

from modules.config import Config
from orchestrator.cli import main
from orchestrator.configuration.commands import GenerateConfig, PrepareConfig, PretrainConfig
from orchestrator.configuration.mistakes import validated
from orchestrator.errors import ConfigError

LONG = "x" * 300
MODEL = "model.path=nowhere/model"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["prepare", f"run.name={LONG}"], "has 300 characters, and may have 128"),
        (["pretrain", f"run.name={LONG}"], "has 300 characters, and may have 128"),
        (["prepare", f"storage.root=outputs/{LONG}"], "a folder's name has at most 255 bytes"),
        (["prepare", "storage.root=out::puts"], "out::puts: '::' stands for a chain of file systems (fsspec)"),
        (["pretrain", "storage.root=s3://bucket/a::b"], "s3://bucket/a::b: '::' stands for a chain"),
        (["runs", "storage.root=out::puts"], "out::puts: '::' stands for a chain"),
        (["generate", "model.path=out::puts/model"], "out::puts/model: '::' stands for a chain"),
        (["prepare", "data=files", "data.path="], "which would be the current folder; write . if that is meant"),
        (["prepare", "data.csv_delimiter=ab"], "data.csv_delimiter=ab: must be one character"),
    ],
)
def test_it_is_refused(empty_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
    assert not list(empty_folder.iterdir())


def test_a_current_folder_that_cannot_be_a_root_is_refused(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "a::b").mkdir()
    monkeypatch.chdir(empty_folder / "a::b")
    assert main(["prepare"]) == 2
    assert "a::b/outputs: '::' stands for a chain of file systems" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        (GenerateConfig, {"model": {"path": "m"}, "prompt": "a\udcff"}, "prompt=a\udcff: character 2 is not UTF-8"),
        (PrepareConfig, {"data": {"text_field": "\udcff"}}, "data.text_field=\udcff: character 1 is not UTF-8"),
        (PrepareConfig, {"data": {"source": "files", "path": ["a", "b\udcff"]}}, "character 2 is not UTF-8 (a file of"),
        (PretrainConfig, {"tracking": {"tags": ["ab\ud800"]}}, "character 3 is not UTF-8"),
    ],
)
def test_text_that_is_not_unicode_is_refused(kind: type[Config], values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validated(values, kind)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a/b/c", "must begin with a letter or digit"),
        ("/a", "must begin with a letter or digit"),
        ("a/..", "must begin with a letter or digit"),
        ("a/model", "must not end in /model, which is a folder within that of a run named a"),
        (f"{'x' * 100}/{'y' * 100}", "has 201 characters, and may have 128"),
    ],
)
def test_a_run_of_a_pipeline_has_one_slash_and_no_name_of_a_part_of_a_run(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validated({"run": {"name": name}}, PrepareConfig)
    assert told in str(caught.value)
    assert validated({"run": {"name": "a/b-0123"}}, PrepareConfig).run.name == "a/b-0123"
