"""`predict` as a user runs it, with tiny models of random weights."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from task_models import WORDS, read_lines, write_rows, write_task_model

from orchestrator.cli import main
from orchestrator.evaluation import task_model
from orchestrator.evaluation.task_model import TaskModel
from orchestrator.storage.store import Storage

LABELS = ["neg", "neu", "pos"]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_task_model(folder / "classifier", labels=LABELS)
    tuned = write_task_model(folder / "translator")
    task = {"name": "translation", "prompt": "{source} ->", "source_field": "en", "target_field": "de"}
    (tuned / "recipe.json").write_text(json.dumps({"task": task}))
    write_task_model(folder / "language_model")
    return folder


@pytest.fixture
def predict(models: Path, empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def called(model: str, *words: str, code: int = 0) -> str:
        assert main(["predict", f"model.path={models / model}", "max_new_tokens=8", *words]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return called


def texts(number: int) -> list[str]:
    generator = random.Random(5)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, 14))) for _ in range(number)]


@pytest.mark.parametrize(("model", "field"), [("classifier", "text"), ("translator", "en")])
def test_a_row_has_the_same_prediction_alone_in_any_batch_and_in_any_order(
    predict: Run, model: str, field: str
) -> None:
    rows = [{field: text} for text in texts(11)]
    write_rows(Path("a.jsonl"), rows)
    write_rows(Path("b.jsonl"), rows[::-1])
    together = read_lines(predict(model, "data=files", "data.path=a.jsonl", "batch_size=7"))
    backwards = read_lines(predict(model, "data=files", "data.path=b.jsonl", "batch_size=2"))
    assert [line["row"] for line in together] == rows
    assert [line["place"] for line in together] == [f"a.jsonl:{number}" for number in range(1, 12)]
    for one, other in zip(together, backwards[::-1], strict=True):
        assert one["prediction"] == other["prediction"]
        assert one.get("probabilities") == pytest.approx(other.get("probabilities", None), abs=2e-5)
    assert len({line["prediction"] for line in together}) > 1
    shown = predict(model, f"text={rows[3][field]}")
    if model == "classifier":
        assert sum(together[3]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert together[3]["prediction"] == max(LABELS, key=together[3]["probabilities"].__getitem__)
        assert f"{100 * max(together[3]['probabilities'].values()):.1f} %" in shown
    else:
        assert shown == f"{together[3]['prediction']}\n"


@pytest.mark.parametrize("output", ["out/p.jsonl", "memory://predictions/p.jsonl"])
def test_an_interrupt_leaves_the_rows_before_it_whole(
    predict: Run, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    write_rows(Path("a.jsonl"), [{"text": text, "label": None} for text in texts(9)])
    monkeypatch.setattr(task_model, "_BATCHES_AHEAD", 1)
    classified, calls = TaskModel.classified, []

    def interrupted(self: TaskModel, questions: Any) -> Any:
        calls.append(len(questions))
        if sum(calls) > 6:
            raise KeyboardInterrupt
        return classified(self, questions)

    monkeypatch.setattr(TaskModel, "classified", interrupted)
    words = ["data=files", "data.path=a.jsonl", "batch_size=3", f"output={output}"]
    predict("classifier", *words, code=130)
    folder, _, name = output.rpartition("/")
    written = Storage(folder).read_bytes(name).decode()
    assert written.endswith("}\n")
    assert [line["row"]["text"] for line in read_lines(written)] == texts(6)
    assert Storage(folder).list(hidden=True) == [name]
    assert "exists already, and is not replaced" in predict("classifier", *words, code=2)


def test_bad_rows_are_all_named_before_anything_is_computed_or_written(
    predict: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskModel, "classified", lambda *_: pytest.fail("computed"))
    write_rows(Path("a.jsonl"), [{"text": "to be"}, {"text": 3}, {"label": "pos"}, {"text": ""}])
    words = ["data=files", "data.path=a.jsonl", "output=out/p.jsonl"]
    said = predict("classifier", *words, code=2).removeprefix("error: ").splitlines()
    assert [line[:10] for line in said] == ["a.jsonl:2:", "a.jsonl:3:", "a.jsonl:4:"]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("language_model", ["text=a"], "does not say what it was fine-tuned for; name it with task=translation"),
        ("language_model", ["text=a", "task=text_generation"], "continued by orchestrator generate"),
        ("classifier", ["text=a", "pair=b"], "pair: belongs to a classification of pairs"),
        ("classifier", ["text=a", "task=classification", "task.pair_field=b"], "pair: must be given, too"),
        ("classifier", ["text=a", "task=dialogue"], "is a classifier, which writes no text"),
    ],
    ids=["no task", "continuation", "a pair", "no pair", "another task"],
)
def test_what_the_model_was_not_made_for_is_refused(predict: Run, model: str, words: list[str], said: str) -> None:
    assert said in predict(model, *words, code=2)
