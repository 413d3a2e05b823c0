"""The interface of a task: a row of data becomes examples to learn from, and questions to ask a model.

Nothing here imports torch, and nothing knows where rows come from or where examples go.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from modules.data.rows import Row
from modules.tasks.tally import Tally


class Example(NamedTuple):
    """What a model learns from: tokens, and what it is to predict of them."""

    ids: list[int]
    """All tokens, those that begin and end the text included."""
    is_target: list[bool]
    """By token, whether the loss predicts it; the first one never is. Empty where a label is predicted."""
    label: int | None = None
    """Number of the class; None where tokens are predicted."""
    num_bytes: int = 0
    """UTF-8 bytes of the text for which the targets stand."""
    was_cut: bool = False
    """Whether it was too long and has lost tokens."""


class Question(NamedTuple):
    """What a model is asked when it is evaluated or used. The right answer is no part of it."""

    ids: list[int]
    """Tokens that the model reads before it answers."""
    text: str
    """The question as a person reads it."""
    reference: str | None
    """The right answer, a label's name for a classification; None if the row has none."""


class Task(Protocol):
    """What is learned from the rows of a data set, and asked of a model.

    The messages of its errors begin with the row's location, and name value, rule and remedy.
    """

    @property
    def tally(self) -> Tally:
        """Counts of the rows so far, and of what became of them."""
        ...

    @property
    def fields(self) -> Sequence[str]:
        """Paths of the fields that a row must have to be learned from."""
        ...

    @property
    def optional_fields(self) -> Sequence[str]:
        """Paths of the fields that a row may have."""
        ...

    def examples(self, row: Row) -> list[Example]:
        """Return what a row teaches: one example or several, or none where the settings drop it.

        Raises:
            InputError: The row cannot be used.
        """
        ...

    def questions(self, row: Row) -> list[Question]:
        """Return what a row asks; its reference answer may be missing.

        Raises:
            InputError: The row cannot be used.
        """
        ...
