"""Settings of the commands that measure and use a model which contradict each other are all named."""

from typing import Any

import pytest

from orchestrator.configuration import commands
from orchestrator.configuration.mistakes import mistakes_in

MODEL = {"model": {"path": "x"}}
TASK = {"task": {"name": "translation"}}
ROWS = {"data": {"source": "files", "path": "x.jsonl"}}


@pytest.mark.parametrize(
    ("kind", "raw", "starts"),
    [
        ("Evaluate", {}, []),
        ("Evaluate", {**TASK, **ROWS, "num_beams": 4, "split": "val"}, []),
        ("Evaluate", {"num_beams": 4, "split": "val"}, ["num_beams=4: belongs to a task", "split=val: belongs to a"]),
        ("Evaluate", {**TASK, "part": "all"}, ["part=all: belongs to text", "data: must be given with a task"]),
        ("Compare", {**TASK}, ["other.path: must be given"]),
        ("Compare", {**TASK, "other": {"path": "y", "predictions": "z"}}, ["other.predictions=z: other.path is given"]),
        (
            "Compare",
            {**TASK, "other": {"predictions": "z", "revision": "a"}},
            ["other.revision=a: belongs to"],
        ),
        ("Predict", {}, ["text: must be given, or rows"]),
        ("Predict", {**ROWS, "text": "a"}, ["text=a: data has the texts"]),
        ("Predict", {**ROWS, "pair": "a"}, ["pair=a: is the second text"]),
        ("Predict", {"text": "a", "output": "o.txt"}, ["output=o.txt: belongs to data", "output=o.txt: must end in"]),
        ("Predict", {**ROWS, "output": "o.jsonl"}, []),
        ("Predict", {"data": {**ROWS["data"], "split_field": None}}, []),
    ],
)
def test_contradictions_are_named(kind: str, raw: dict[str, Any], starts: list[str]) -> None:
    found = mistakes_in({**MODEL, **raw}, getattr(commands, f"{kind}Config"))
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True)), found
