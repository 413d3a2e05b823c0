"""Examples of a task are prepared once, known by what decides them, and refused with file and row."""

import json
from pathlib import Path
from typing import Any

import pytest
from model_files import model_files

from modules.config import DataConfig
from modules.errors import InputError
from modules.tasks.settings import ClassificationConfig, TaskConfig, TranslationConfig
from orchestrator.artifacts.opened_data import open_examples
from orchestrator.artifacts.prepared_task import PreparedExamples, TaskRequest, prepared_task
from orchestrator.storage.store import Storage

ROWS: list[dict[str, Any]] = [
    {"text": f"text {n}", "label": ("b", "a", "c")[n % 3], "split": ("train", "train", "val", "test")[n % 4]}
    for n in range(24)
]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return model_files("gpt2", eos_token="<|endoftext|>")


class Made:
    """Prepares rows below a folder."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        self.folder, self.files, self.storage = folder, files, Storage(str(folder / "outputs"))

    def __call__(
        self,
        rows: list[Any],
        task: TaskConfig | None = None,
        length: int = 64,
        name: str = "rows.jsonl",
        **data: Any,
    ) -> PreparedExamples:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(source="files", path=(str(path),), **data)
        request = TaskRequest(task or ClassificationConfig(), config, self.files, length)
        return prepared_task(self.storage, request, lambda total: lambda *done: None)

    def left(self) -> list[str]:
        """Return what is stored."""
        return self.storage.list("data", hidden=True)


@pytest.fixture
def made(tmp_path: Path, files: dict[str, bytes]) -> Made:
    return Made(tmp_path, files)


def test_labels_are_those_of_the_training_rows_in_order(made: Made) -> None:
    examples = made(ROWS)
    assert examples.labels == ("a", "b", "c")
    assert examples.splits["train"]["label_counts"] == {"a": 4, "b": 4, "c": 4}
    data = open_examples(made.storage, examples.name, 10**9)
    assert data.labels == examples.labels
    train = data.splits["train"]
    assert train.labels is not None
    expected = [data.labels.index(row["label"]) for row in ROWS if row["split"] == "train"]
    assert train.labels.tolist() == expected


def test_same_rows_are_prepared_once_wherever_they_lie(made: Made) -> None:
    first = made(ROWS)
    (made.folder / "elsewhere").mkdir()
    assert made(ROWS, name="elsewhere/rows.jsonl").name == first.name
    assert made.left() == [first.name.removeprefix("data/")]


@pytest.mark.parametrize(
    "change",
    [
        {"length": 65},
        {"task": ClassificationConfig(too_long="left")},
        {"task": ClassificationConfig(labels=("c", "b", "a"))},
        {"val_fraction": 0.5},
        {"rows": [*ROWS, ROWS[0]]},
    ],
    ids=str,
)
def test_what_decides_the_examples_changes_their_name(made: Made, change: dict[str, Any]) -> None:
    first = made(ROWS)
    assert made(**{"rows": ROWS, **change}).name != first.name


def test_another_tokenizer_changes_their_name(made: Made) -> None:
    first = made(ROWS)
    made.files = {**made.files, "tokenizer_config.json": b'{"bos_token": "<|endoftext|>"}'}
    assert made(ROWS).name != first.name


REFUSED: dict[str, tuple[list[Any], str]] = {
    "no label": ([*ROWS, {"text": "x", "split": "train"}], r"rows\.jsonl:25: no field 'label'.*task\.label_field"),
    "unknown label": ([*ROWS, {"text": "x", "label": "z", "split": "test"}], r"rows\.jsonl:25: label 'z'"),
    "one class": ([{"text": "x", "label": "a"}] * 20, "every row has the label 'a'"),
    "no text": ([*ROWS, {"text": 5, "label": "a", "split": "train"}], r"rows\.jsonl:25: field 'text' holds 5"),
    "other split": ([*ROWS, {"text": "x", "label": "a", "split": "best"}], r"rows\.jsonl:25: .*'best'"),
    "nothing left": ([{"text": "", "label": name} for name in "ab"], "training split has no example(.|\n)*dropped"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_cannot_be_used_are_refused_and_nothing_is_left(made: Made, case: str) -> None:
    rows, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        made(rows, val_fraction=0)
    assert made.left() == []


def test_what_was_cut_and_dropped_is_told_again_when_nothing_is_prepared(made: Made) -> None:
    rows = [*ROWS, {"text": "long " * 90, "label": "a", "split": "train"}, {"text": "", "label": "a", "split": "val"}]
    first, again = made(rows), made(rows)
    assert first.notes == again.notes
    told = "\n".join(first.notes)
    assert "classification: 13 train, 6 val, 6 test examples" in told
    assert "train: 1 of 13 rows cut: longer than 64 tokens (first:" in told
    assert "val: 1 of 7 rows dropped: no text (first:" in told


def test_epochs_give_the_number_of_steps(made: Made) -> None:
    examples = made(ROWS)
    assert [examples.num_steps(epochs, 5) for epochs in (0.1, 1, 2.5)] == [1, 3, 6]


def test_translation_reads_its_own_fields(made: Made) -> None:
    rows = [{"en": "one two", "de": f"eins {n}"} for n in range(20)]
    examples = made(rows, TranslationConfig(source_field="en", target_field="de"), val_fraction=0.2)
    assert examples.labels == ()
    assert sum(split["num_examples"] for split in examples.splits.values()) == 20
    assert examples.splits["train"]["num_packs"] < examples.splits["train"]["num_examples"]
