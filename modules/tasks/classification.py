"""The class of a text, or of a pair of texts."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from modules.data.rows import Row
from modules.errors import InputError
from modules.tasks.fields import checked_text, given_text, missing, shown
from modules.tasks.inputs import TaskInputs
from modules.tasks.sequences import Part, SequenceBuilder
from modules.tasks.settings import ClassificationConfig
from modules.tasks.tally import Tally
from modules.tasks.task import Example, Question

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_SHOWN_LABELS = 10


def build(inputs: TaskInputs) -> "Classification":
    """Return the task."""
    return Classification(inputs.settings, inputs)


class Classification:
    """A text, or a pair of texts, and the number of its label; no token is predicted."""

    def __init__(self, settings: ClassificationConfig, inputs: TaskInputs):
        self._settings, self._labels = settings, inputs.labels
        self._numbers = {label: number for number, label in enumerate(inputs.labels)}
        self.tally = Tally()
        self._builder = SequenceBuilder(inputs.tokenizer, inputs.sequence_length, settings.too_long, self.tally)

    @property
    def fields(self) -> Sequence[str]:
        pair = self._settings.pair_field
        return (self._settings.text_field, *([] if pair is None else [pair]), self._settings.label_field)

    @property
    def optional_fields(self) -> Sequence[str]:
        return ()

    def examples(self, row: Row) -> list[Example]:
        """Return the tokens of a row's text with the number of its label."""
        self.tally.num_rows += 1
        label = self._number(label_of(row, self._settings), row.location)
        texts = self._texts(row)
        if not all(texts):
            self.tally.note("dropped", "no text", row.location)
            return []
        built = self._builder.build(self._parts(texts), row.location)
        if built is None:
            return []
        self.tally.num_examples += 1
        return [built._replace(is_target=[], label=label)]

    def questions(self, row: Row) -> list[Question]:
        """Return the tokens of a row's text, and its label's name if it has one."""
        self.tally.num_rows += 1
        label = label_if_given(row, self._settings)
        if label is not None:
            self._number(label, row.location)
        texts = self._texts(row)
        if not all(texts):
            raise InputError(f"{row.location}: it has no text, so it has no class; remove the row")
        built = self._builder.build(self._parts(texts), row.location)
        return [] if built is None else [Question(built.ids, self._settings.separator.join(texts), label)]

    def _texts(self, row: Row) -> list[str]:
        settings = self._settings
        texts = [given_text(row, settings.text_field, "task.text_field")]
        if settings.pair_field is not None:
            texts.append(given_text(row, settings.pair_field, "task.pair_field"))
        return texts

    def _parts(self, texts: Sequence[str]) -> list[Part]:
        first, *others = texts
        parts = [Part(first)]
        for text in others:
            parts += [Part(self._settings.separator, is_fixed=True), Part(text)]
        return parts

    def _number(self, label: str, location: str) -> int:
        if label not in self._numbers:
            raise InputError(f"{location}: label {label!r} is none of the known ones, {_listed(self._labels)}; {_MEND}")
        return self._numbers[label]


_MEND = "correct or remove the row, or name all labels in task.labels"


def labels_in(rows: Iterable[Row], settings: ClassificationConfig) -> tuple[str, ...]:
    """Return the labels of the training split, sorted, those that are whole numbers by value.

    Raises:
        InputError: A row has none, or one that cannot be used; or there are not two of them.
    """
    found = {label_of(row, settings) for row in rows}
    check_two(found, settings)
    return tuple(sorted(found, key=_order))


def check_two(found: Collection[str], settings: ClassificationConfig) -> None:
    """Refuse training data with the labels `found` if there is nothing to tell apart.

    Raises:
        InputError: There is.
    """
    if len(found) < 2:
        have = f"every row has the label {next(iter(found))!r}" if found else "no row has a label"
        raise InputError(f"task.label_field={settings.label_field}: {have}; a classification needs two labels or more")


def label_of(row: Row, settings: ClassificationConfig) -> str:
    """Return the name of a row's label.

    Raises:
        InputError: It has none, or one that cannot be used.
    """
    label = label_if_given(row, settings)
    if label is None:
        path = settings.label_field
        reason = f"field {path!r} is empty" if row.values.get(path) in ("", b"") else missing(row, path)
        raise InputError(
            f"{row.location}: {reason}; name the field of the label in task.label_field, or remove the row"
        )
    return label


def label_if_given(row: Row, settings: ClassificationConfig) -> str | None:
    """Return the name of a row's label, or None if it has none.

    Raises:
        InputError: It has one that cannot be used.
    """
    value = row.values.get(settings.label_field)
    return None if value is None or value in ("", b"") else _name(value, settings.label_field, row.location)


def _name(value: Any, path: str, location: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    place, remedy = f"{location}: field {path!r}", "a label is a text, a whole number, or true or false"
    if isinstance(value, str | bytes):
        return checked_text(value, place, remedy)
    raise InputError(f"{place} holds {shown(value)}; {remedy}")


def _order(label: str) -> tuple[bool, int, str]:
    is_number = _NUMBER.fullmatch(label) is not None
    return not is_number, int(label) if is_number else 0, label


def _listed(labels: Sequence[str]) -> str:
    shown_ones = ", ".join(map(repr, labels[:_SHOWN_LABELS]))
    return shown_ones + (f" and {len(labels) - _SHOWN_LABELS:,} more" if len(labels) > _SHOWN_LABELS else "")
