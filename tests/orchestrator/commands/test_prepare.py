"""`prepare` with filters, as a user runs it."""

import json
from pathlib import Path
from typing import Any

import pytest

from modules.config import DataConfig, TokenizerConfig
from orchestrator.artifacts.prepared_data import data_recipe
from orchestrator.artifacts.recipe import fingerprint
from orchestrator.cli import main
from orchestrator.storage.input_files import find_files


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    texts = [f"Text {number} of many is about {'x' * number}." for number in range(40)]
    source = rows(tmp_path / "a.jsonl", [*texts, texts[3], "Mail jane.doe@mail.example.org about this.", "no"])
    return [
        "prepare",
        f"storage.root={tmp_path}/root",
        "data=files",
        f"data.path={source}",
        "tokenizer=byte",
        "data.num_processes=1",
        "data.val_fraction=0",
        "data.filters.min_words=2",
        "data.redact.kinds=[email]",
        "data.deduplicate.kind=exact",
    ]


TOLD = [
    "kept 41 of 43 documents, ",
    "left out 1 documents (2 bytes) for their length, such as 'no' (1 words, fewer than 2)",
    "as equal to an earlier one, such as 'Text 3 of many is about xxx.'",
    "replaced 1 e-mail addresses in 1 documents, such as e-mail address of the form 'xxxx.xxx@xxxx.xxxxxxx.xxx' in "
    "'Mail <EMAIL> about this.'",
]


def test_dry_run_writes_nothing_and_tells_what_prepare_tells_and_keeps_in_the_manifest(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra in (["dry_run=true"], [], []):  # the last finds it prepared
        assert main([*words, *extra]) == 0
        said = capsys.readouterr().out
        assert [line for line in TOLD if line not in said] == []
        assert ("data:" not in said) == bool(extra)
        assert (tmp_path / "root").exists() != bool(extra)
    (folder,) = (tmp_path / "root" / "data").glob("files-*")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["filtered"]["documents"] == {"read": 43, "kept": 41}
    assert manifest["filtered"]["changed"]["email"]["places"] == 1
    assert "jane.doe" not in json.dumps(manifest)
    assert not [path for path in folder.iterdir() if "filters" in path.name]


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        (
            ["task=dialogue", "model.path=x", "dry_run=true"],
            ["data.deduplicate: belongs to plain text", "dry_run=true: says what filters would leave out"],
        ),
        (
            ["data.decontaminate.path=nowhere.jsonl", "data.deduplicate.against=a.odd"],
            ["a.odd: matches no file"],
        ),
    ],
)
def test_a_mistake_in_the_filters_is_told_before_anything_is_written(
    given: list[str], messages: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *given]) == 2
    said = capsys.readouterr().err
    assert [message for message in messages if message not in said] == []
    assert not (tmp_path / "root" / "data").exists()


def recipe(**data: Any) -> dict[str, Any]:
    return data_recipe(DataConfig.model_validate(data), TokenizerConfig(), (), None)


def test_filters_that_are_off_leave_every_recipe_as_it_was_and_those_that_are_on_do_not(tmp_path: Path) -> None:
    assert fingerprint(recipe()) == "55c8c367baafc53f"  # computed by the version before filters
    path = rows(tmp_path / "test.jsonl", ["a test"])
    given = {"decontaminate": {"path": str(path)}}
    with_test = recipe(**given)
    assert with_test["held_out"] == [["test.jsonl", find_files([str(path)])[0].identity()]]
    path.write_text('{"text": "another test"}\n')
    found = [recipe(), with_test, recipe(**given), recipe(filters={"min_words": 1}), recipe(redact={"kinds": ["ip"]})]
    assert len(set(map(fingerprint, found))) == len(found)
