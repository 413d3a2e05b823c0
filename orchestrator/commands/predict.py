"""`orchestrator predict`: what a model makes of a text, or of each row of a data set."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from math import exp
from typing import Any, NamedTuple

from modules.data.rows import Row
from modules.tasks.settings import ClassificationConfig
from modules.tasks.task import Question, Task
from orchestrator.artifacts.models import load_model
from orchestrator.configuration.commands import PredictConfig
from orchestrator.display.progress import rows_progress
from orchestrator.display.results import show_probabilities
from orchestrator.display.terminal import new_console, print_line, write_text
from orchestrator.errors import UserError
from orchestrator.evaluation.model_task import row_of, task_of
from orchestrator.evaluation.task_model import TaskModel
from orchestrator.evaluation.task_rows import TaskRows
from orchestrator.storage.new_file import NewLines


class _Asked(NamedTuple):
    row: Row
    question: Question


def run(config: PredictConfig) -> None:
    """Load the model, and show what it makes of the text, or write what it makes of each row as it is found."""
    output = NewLines(config.output, "output=") if config.output else None
    trained = load_model(config.model.path, config.model.revision, config.model.adapter)
    settings = config.task or task_of(trained, config.model.path)
    model = TaskModel(trained, settings, config, config.model.path)
    if not isinstance(settings, ClassificationConfig):
        model = model.prepared()
    for line in model.notes():
        print(f"note: {line}", file=sys.stderr)
    if config.text is not None:
        _show(model, config.text, config.pair)
    else:
        _predict_rows(config, model, output)


def _show(model: TaskModel, text: str, pair: str | None) -> None:
    questions = _task(model).questions(row_of(model.settings, text, pair))
    if not questions:
        raise UserError("text: is longer than the model takes; shorten it, or set task.too_long=right or left")
    if isinstance(model.settings, ClassificationConfig):
        (logs,) = model.classified(questions)
        show_probabilities(dict(zip(model.labels, map(exp, logs), strict=True)))
    else:
        write_text(new_console(), f"{model.answers(questions)[0]}\n")


def _predict_rows(config: PredictConfig, model: TaskModel, output: NewLines | None) -> None:
    """Check all rows, then write a line for each; an interrupt leaves whole lines, those of the first rows."""
    assert config.data is not None  # a rule between the settings
    task = _task(model)
    rows = TaskRows(config.data, model.settings, task, config.split, limit=config.max_rows, has_answers=False)
    num_rows = rows.checked(task.questions)
    for line in task.tally.lines(model.settings.name, model.trained.tokenizer.unknown_token):
        print(f"note: {line}", file=sys.stderr)
    write: Callable[[str], Any] = output.add if output else lambda lines: write_text(new_console(), lines)
    number = 0
    with output or nullcontext(), rows_progress() as begin:
        progress = begin(num_rows)
        for number, line in enumerate(_lines(model, rows), start=1):
            write(line)
            progress(number)
    if output:
        print_line(f"wrote {number:,} rows to {output.url}")


def _lines(model: TaskModel, rows: TaskRows) -> Iterator[str]:
    task = _task(model)
    every = (_Asked(row, question) for row in rows for question in task.questions(row))
    found = model.in_batches(every, lambda asked: len(asked.question.ids), lambda batch: _predictions(model, batch))
    for asked, prediction in found:
        line = {"place": asked.row.location, "row": asked.row.values, **prediction}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _predictions(model: TaskModel, batch: Sequence[_Asked]) -> list[dict[str, Any]]:
    questions = [asked.question for asked in batch]
    if not isinstance(model.settings, ClassificationConfig):
        return [{"prediction": answer} for answer in model.answers(questions)]
    return [_class(model.labels, logs) for logs in model.classified(questions)]


def _class(labels: Sequence[str], logs: Sequence[float]) -> dict[str, Any]:
    likeliest = max(range(len(labels)), key=logs.__getitem__)
    # the digits after these differ with the other rows of a batch
    probabilities = {label: round(exp(log), 5) for label, log in zip(labels, logs, strict=True)}
    return {"prediction": labels[likeliest], "probabilities": probabilities}


def _task(model: TaskModel) -> Task:
    return model.task(with_room=not isinstance(model.settings, ClassificationConfig))
