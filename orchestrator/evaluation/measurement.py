"""How well a model does a task on the rows of a split: every row is asked, and metrics are computed from all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from modules.data.rows import Row
from modules.errors import InputError
from modules.example_scores import ExampleLoss
from modules.tasks.bootstrap import Scorer
from modules.tasks.classification_metrics import Matrix, confusion_matrix
from modules.tasks.scorers import class_scorers, token_scorers
from modules.tasks.settings import ClassificationConfig, TranslationConfig
from modules.tasks.task import Example, Question
from modules.tasks.text_scores import TextScores
from orchestrator.errors import UserError
from orchestrator.evaluation.labels import check_labels
from orchestrator.evaluation.task_model import TaskModel
from orchestrator.evaluation.task_rows import TaskRows

OnProgress = Callable[[int], None]
"""Receives the number of rows done."""


class Sample(NamedTuple):
    """An answer to look at."""

    question: str
    reference: str | None
    answer: str


@dataclass(frozen=True)
class Measurement:
    """What is known of a model's answers to the rows of a split."""

    task: str
    places: Sequence[str]
    """Where each measured row is."""
    scorers: Mapping[str, Scorer]
    """Metrics by their names without the task."""
    notes: Sequence[str] = ()
    """What became of rows that were dropped or cut."""
    signatures: Mapping[str, str] = field(default_factory=dict)
    """How sacrebleu computed its metrics, by metric."""
    confusion: Matrix | None = None
    """Of a classification."""
    labels: Sequence[str] = ()
    references: Sequence[str] = ()
    """The right answer of each row, of a classification or a translation."""
    samples: Sequence[Sample] = ()
    tokenizer: str = ""
    """Of the model; losses of a token are of the same tokens only where it is the same."""

    @property
    def metrics(self) -> dict[str, float]:
        """Return the metrics over all rows, by name."""
        every = np.ones(len(self.places))
        return {f"{self.task}/{name}": score(every) for name, score in self.scorers.items()}


@dataclass(frozen=True)
class MeasureSettings:
    """How a model is measured."""

    bleu_tokenizer: str = "13a"
    num_samples: int = 0
    """Answers to look at."""


class _Asked(NamedTuple):
    """What is computed for a row."""

    location: str
    examples: Sequence[Example] = ()
    """Whose losses are measured."""
    question: Question | None = None
    """That is answered, or classified."""


def measure(
    model: TaskModel, rows: TaskRows, settings: MeasureSettings, on_progress: Callable[[int], OnProgress]
) -> Measurement:
    """Return how well a model does its task.

    Args:
        model: The model with the task.
        rows: They are all checked before anything is computed, and read again for it.
        settings: How it is measured.
        on_progress: Takes the number of rows to compute; returns what receives the number of those that are done.

    Raises:
        UserError: lists the rows that cannot be used; or none is left.
    """
    if isinstance(model.settings, ClassificationConfig):
        return _classification(model, rows, on_progress)
    return _tokens(model, rows, settings, on_progress)


def _classification(model: TaskModel, rows: TaskRows, on_progress: Callable[[int], OnProgress]) -> Measurement:
    check_labels(model, rows)
    reader = _Reader(model)
    progress, notes = on_progress(rows.checked(reader)), reader.notes()
    numbers = {label: number for number, label in enumerate(model.labels)}
    places: list[str] = []
    found: list[tuple[int, int, float]] = []
    for asked, logs in model.in_batches(
        _Reader(model).all(rows), _question_length, lambda batch: _classes(model, batch)
    ):
        assert asked.question is not None
        label = numbers[str(asked.question.reference)]
        places.append(asked.location)
        found.append((label, int(np.argmax(logs)), -logs[label]))
        progress(len(places))
    labels, predictions, nats = zip(*found, strict=True)
    return Measurement(
        model.settings.name,
        places,
        class_scorers(labels, predictions, len(model.labels), nats),
        notes,
        confusion=confusion_matrix(labels, predictions, len(model.labels)),
        labels=model.labels,
        references=[model.labels[label] for label in labels],
    )


def _tokens(
    model: TaskModel, rows: TaskRows, settings: MeasureSettings, on_progress: Callable[[int], OnProgress]
) -> Measurement:
    reader = _Reader(model)
    is_translation = isinstance(model.settings, TranslationConfig)
    num_rows, notes = rows.checked(reader), reader.notes()
    progress = on_progress(num_rows * (1 + is_translation))
    places, scorers = _losses(model, rows, progress)
    samples: list[Sample] = []
    signatures: Mapping[str, str] = {}
    references: list[str] = []
    if model.settings.name != "text_generation":
        model = model.prepared()  # the losses are done
    if is_translation:
        samples = list(_answers(model, _Reader(model).all(rows), lambda done: progress(num_rows + done)))
        references = [str(sample.reference) for sample in samples]
        scores = TextScores([sample.answer for sample in samples], references, settings.bleu_tokenizer)
        scorers, signatures = {**scores.scorers, **scorers}, scores.signatures
    elif model.settings.name == "dialogue":
        samples = list(_answers(model, islice(_questions(model, rows), settings.num_samples), lambda _: None))
    samples = samples[: settings.num_samples]
    return Measurement(
        model.settings.name,
        places,
        scorers,
        notes,
        signatures,
        references=references,
        samples=samples,
        tokenizer=model.trained.tokenizer.serialised(),
    )


class _Reader:
    """Reads rows in the same way each time, and counts what becomes of them."""

    def __init__(self, model: TaskModel) -> None:
        self._model = model
        self._examples = None if isinstance(model.settings, ClassificationConfig) else model.task()
        # of a dialogue some answers are looked at, and none is measured
        is_asked = isinstance(model.settings, ClassificationConfig | TranslationConfig)
        self._questions = model.task(with_room=self._examples is not None) if is_asked else None
        self._is_empty = True

    def __call__(self, row: Row) -> _Asked | None:
        """Return what a row asks; None if it is dropped.

        Raises:
            InputError: The row cannot be used.
        """
        examples = [] if self._examples is None else self._examples.examples(row)
        if self._examples is not None and not examples:
            return None
        question = None
        if self._questions is not None:
            questions = self._questions.questions(row)
            if not questions:
                return None
            (question,) = questions
            if question.reference is None:
                raise InputError(f"{row.location}: it has no right answer to compare with; add it, or remove the row")
        self._is_empty = False
        return _Asked(row.location, examples, question)

    def all(self, rows: TaskRows) -> Iterator[_Asked]:
        """Yield what each row asks, those that are dropped left out."""
        return (asked for asked in map(self, rows) if asked is not None)

    def notes(self) -> list[str]:
        """Return what became of rows that are dropped or cut.

        Raises:
            UserError: None is left.
        """
        unknown = self._model.trained.tokenizer.unknown_token
        tallies = [task.tally for task in (self._examples, self._questions) if task is not None]
        lines = [line for tally in tallies for line in tally.lines(self._model.settings.name, unknown)]
        lines = list(dict.fromkeys(lines))
        if self._is_empty:
            raise UserError("\n".join(["no row is left to measure the model on", *lines]))
        return lines


def _losses(model: TaskModel, rows: TaskRows, progress: OnProgress) -> tuple[list[str], dict[str, Scorer]]:
    """Return the places of the rows, and the metrics of their targets; a row is one unit, however long it is."""
    places: list[str] = []
    sums: list[list[float]] = []
    numbered = enumerate(_Reader(model).all(rows))
    each = ((number, asked.location, example) for number, asked in numbered for example in asked.examples)
    for (number, location, example), loss in model.in_batches(each, _example_length, lambda items: _nats(model, items)):
        if number == len(places):
            places.append(location)
            sums.append([0.0, 0.0, 0.0])
            progress(number)
        sums[-1] = [a + b for a, b in zip(sums[-1], (*loss, example.num_bytes), strict=True)]
    return places, token_scorers(*np.array(sums).T)


def _answers(model: TaskModel, every: Iterator[_Asked], progress: OnProgress) -> Iterator[Sample]:
    answered = model.in_batches(every, _question_length, lambda batch: model.answers(_asked_questions(batch)))
    for number, (asked, answer) in enumerate(answered, start=1):
        progress(number)
        assert asked.question is not None
        yield Sample(asked.question.text, asked.question.reference, answer)


def _questions(model: TaskModel, rows: TaskRows) -> Iterator[_Asked]:
    task = model.task(with_room=True)
    return (_Asked(row.location, question=question) for row in rows for question in task.questions(row))


def _classes(model: TaskModel, batch: Sequence[_Asked]) -> list[list[float]]:
    return model.classified(_asked_questions(batch))


def _nats(model: TaskModel, items: Sequence[tuple[int, str, Example]]) -> list[ExampleLoss]:
    return model.losses([example for _, _, example in items])


def _asked_questions(batch: Sequence[_Asked]) -> list[Question]:
    return [asked.question for asked in batch if asked.question is not None]


def _question_length(asked: _Asked) -> int:
    return 0 if asked.question is None else len(asked.question.ids)


def _example_length(item: tuple[int, str, Example]) -> int:
    return len(item[2].ids)
