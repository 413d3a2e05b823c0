"""`compare` as a user runs it, with tiny classifiers of random weights."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from task_models import WORDS, write_rows, write_task_model

from orchestrator.cli import main

LABELS = ["neg", "neu", "pos"]
Run = Callable[..., str]


@pytest.fixture
def compare(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    write_task_model(Path("a"), labels=LABELS)
    write_task_model(Path("b"), labels=LABELS[::-1], seed=4)
    generator = random.Random(6)
    rows = [
        {"text": " ".join(generator.choices(WORDS, k=generator.randint(1, 12))), "label": generator.choice(LABELS)}
        for _ in range(30)
    ]
    write_rows(Path("r.jsonl"), rows)

    def called(*words: str, command: str = "compare", code: int = 0) -> str:
        assert main([command, "model.path=a", "data=files", "data.path=r.jsonl", "split=all", *words]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return called


def entries(name: str = "compare/classification") -> list[dict]:
    return [entry["metrics"] for entry in json.loads(Path("a/evaluation.json").read_text())[name].values()]


def test_predictions_of_a_file_are_compared_as_the_model_that_made_them(compare: Run) -> None:
    said = compare("other.path=b", "task=classification", "num_resamples=100")
    compare("model.path=b", "output=b.jsonl", command="predict")
    compare("other.predictions=b.jsonl", "task=classification", "num_resamples=100")
    with_model, with_file = sorted(entries(), key=len, reverse=True)
    assert with_file.keys() == {"classification/accuracy", "classification/macro_f1"}
    assert {name: with_model[name] for name in with_file} == with_file
    accuracy = with_model["classification/accuracy"]
    assert accuracy["low"] < accuracy["difference"] < accuracy["high"]
    assert accuracy["difference"] == accuracy["first"] - accuracy["second"]
    assert f"{100 * accuracy['first']:.1f} %" in said
    compare("task=classification", command="evaluate")
    assert entries("classification")[0]["classification/accuracy"] == accuracy["first"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"prediction": "neg"}'] * 29, "has 29 rows, and 30 of the data are measured"),
        (['{"prediction": "neg"}'] * 29 + ['{"prediction": "x"}'], "p.jsonl:30: the prediction 'x' is no label"),
        (['{"prediction": "neg"}'] * 29 + ['{"label": "neg"}'], "p.jsonl:30: no field 'prediction'"),
        (['{"prediction": "neg", "place": "q/r.jsonl:1"}'] * 30, "p.jsonl:2: is the prediction of q/r.jsonl:1"),
    ],
    ids=["too few", "another label", "no prediction", "another row"],
)
def test_predictions_that_do_not_fit_the_rows_are_refused(compare: Run, lines: list[str], said: str) -> None:
    Path("p.jsonl").write_text("\n".join(lines))
    assert said in compare("other.predictions=p.jsonl", "task=classification", "num_resamples=1", code=2)
    assert not Path("a/evaluation.json").exists()


def test_models_of_different_labels_are_not_compared(compare: Run) -> None:
    write_task_model(Path("c"), labels=[*LABELS, "odd"])
    assert "one of them lacks odd" in compare("other.path=c", "task=classification", code=2)
