"""A model that is asked what a task asks, in the same way by every command."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from modules.chat_template import find_chat_template
from modules.data.pretrained_tokenizer import load_pretrained
from modules.example_scores import ExampleLoss, class_log_probabilities, example_losses
from modules.generation.continuations import BeamSettings, Continuer, Prompt
from modules.tasks.chat_files import SETTING, chat_files
from modules.tasks.registry import build_task
from modules.tasks.settings import ClassificationConfig, DialogueConfig, TaskConfig
from modules.tasks.task import Example, Question, Task
from orchestrator.artifacts.models import TrainedModel
from orchestrator.artifacts.template_file import read_template
from orchestrator.configuration.decoding import AnswerConfig
from orchestrator.errors import UserError
from orchestrator.storage.redaction import redact

Item = TypeVar("Item")
Found = TypeVar("Found")

_BATCHES_AHEAD = 16
"""Batches of items that are read at once, so that those of similar length are computed together."""


class TaskModel:
    """A trained model and a task that it can do."""

    def __init__(self, trained: TrainedModel, settings: TaskConfig, asking: AnswerConfig, path: str) -> None:
        """Take them.

        Args:
            trained: The model.
            settings: The task.
            asking: How it is asked.
            path: The model as the user named it.

        Raises:
            UserError: The model cannot do the task.
        """
        self.settings, self.path, self._asking = settings, redact(path), asking
        self.trained, self._template = trained, None
        self._check_kind()
        if isinstance(settings, DialogueConfig):
            text = None if settings.chat_template is None else read_template(settings.chat_template, SETTING)
            files = chat_files(trained.files, settings, text, self.path)
            self.trained = replace(trained, files=files, tokenizer=load_pretrained(files, self.path))
            self._template = find_chat_template(files, self.path)
        self._length = self._checked_length()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes by number; empty where tokens are predicted."""
        classifier = self.trained.model.config.classifier
        return () if classifier is None else classifier.labels

    def task(self, *, with_room: bool = False) -> Task:
        """Return a new reader of rows, with a tally of its own.

        Args:
            with_room: Whether questions leave room for an answer among the model's positions.
        """
        room = min(self._asking.max_new_tokens, self._length // 2) if with_room else 0
        return build_task(
            self.settings,
            self.trained.tokenizer,
            self._length - room,
            labels=self.labels,
            template=self._template,
        )

    def prepared(self) -> "TaskModel":
        """Return it prepared to write answers fast, and for nothing else; this one is not usable any more."""
        ready = copy(self)
        ready.trained = self.trained.prepared(None, prepack=True)
        return ready

    def classified(self, questions: Sequence[Question]) -> list[list[float]]:
        """Return for each question the log probability of each class."""
        with self.trained.precision():
            return class_log_probabilities(self.trained.model, [question.ids for question in questions])

    def losses(self, examples: Sequence[Example]) -> list[ExampleLoss]:
        """Return the loss of each example's targets."""
        with self.trained.precision():
            return example_losses(self.trained.model, examples)

    def answers(self, questions: Sequence[Question]) -> list[str]:
        """Return what the model answers to each question."""
        asking = self._asking
        beams = BeamSettings(asking.num_beams) if asking.num_beams > 1 else None
        sampling = self.trained.sampling(asking.stop, max_new_tokens=asking.max_new_tokens, temperature=0.0)
        continuer = Continuer(self.trained.model, self.trained.tokenizer, sampling, asking.stop, beams)
        with self.trained.precision():
            found = continuer.batch([Prompt(tuple(question.ids)) for question in questions])
        return [best[0].text for best in found]

    def in_batches(
        self,
        items: Iterable[Item],
        length: Callable[[Item], int],
        compute: Callable[[list[Item]], list[Found]],
    ) -> Iterator[tuple[Item, Found]]:
        """Yield each item with what is computed for it, in order; those of similar length are computed together.

        Args:
            items: Read a few batches ahead.
            length: Number of tokens of one.
            compute: Takes a batch.
        """
        size, rest = self._asking.batch_size, iter(items)
        while ahead := list(islice(rest, size * _BATCHES_AHEAD)):
            order = sorted(range(len(ahead)), key=lambda number: -length(ahead[number]))
            found: dict[int, Found] = {}
            for start in range(0, len(order), size):
                numbers = order[start : start + size]
                found |= zip(numbers, compute([ahead[number] for number in numbers]), strict=True)
            yield from ((item, found[number]) for number, item in enumerate(ahead))

    def notes(self) -> list[str]:
        """Return a line for each setting with which the model reads other prompts than it has learned."""
        learned = self.trained.recipe.get("task", {})
        if learned.get("name") != self.settings.name:
            return []
        return [
            f"task.{name}={getattr(self.settings, name)!r}: {self.path} was fine-tuned with {learned[name]!r}"
            for name in ("prompt", "separator")
            if name in learned and learned[name] != getattr(self.settings, name)
        ]

    def _check_kind(self) -> None:
        is_classifier = self.trained.model.config.classifier is not None
        if is_classifier == isinstance(self.settings, ClassificationConfig):
            return
        if is_classifier:
            raise UserError(f"task={self.settings.name}: {self.path} is a classifier, which writes no text")
        raise UserError(
            f"task=classification: {self.path} is a language model, which has no classes; orchestrator finetune "
            "task=classification makes a classifier of it"
        )

    def _checked_length(self) -> int:
        length, positions = self._asking.sequence_length, self.trained.model.config.max_positions
        if length is not None and length > positions:
            raise UserError(f"sequence_length={length}: the model has {positions} positions")
        return length or self.trained.validation_length
