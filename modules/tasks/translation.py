"""A text and its translation."""

from collections.abc import Sequence

from modules.data.rows import Row
from modules.errors import InputError
from modules.tasks.fields import given_text, text_if_given
from modules.tasks.inputs import TaskInputs
from modules.tasks.sequences import Part, SequenceBuilder
from modules.tasks.settings import TranslationConfig
from modules.tasks.tally import Tally
from modules.tasks.task import Example, Question


def build(inputs: TaskInputs) -> "Translation":
    """Return the task.

    Raises:
        InputError: The tokenizer has no token that ends a translation.
    """
    return Translation(inputs.settings, inputs)


class Translation:
    """A text within a prompt, and the translation with which a model goes on."""

    def __init__(self, settings: TranslationConfig, inputs: TaskInputs):
        self._settings = settings
        self._before, self._after = settings.prompt.split("{source}")
        self.tally = Tally()
        self._builder = SequenceBuilder(inputs.tokenizer, inputs.sequence_length, settings.too_long, self.tally)
        self._builder.check_end()

    @property
    def fields(self) -> Sequence[str]:
        return (self._settings.source_field, self._settings.target_field)

    @property
    def optional_fields(self) -> Sequence[str]:
        return ()

    def examples(self, row: Row) -> list[Example]:
        """Return the prompt and the translation, whose tokens are the targets."""
        self.tally.num_rows += 1
        source = given_text(row, self._settings.source_field, "task.source_field")
        target = given_text(row, self._settings.target_field, "task.target_field")
        if not source or not target:
            self.tally.note("dropped", "no source text" if target else "no translation", row.location)
            return []
        parts = [*self._prompt(source), Part(target, is_target=True)]
        return self._builder.with_targets(self._builder.build(parts, row.location), row.location)

    def questions(self, row: Row) -> list[Question]:
        """Return the prompt alone."""
        self.tally.num_rows += 1
        source = given_text(row, self._settings.source_field, "task.source_field")
        target = text_if_given(row, self._settings.target_field, "task.target_field")
        if not source:
            raise InputError(f"{row.location}: field {self._settings.source_field!r} is empty; remove the row")
        built = self._builder.build(self._prompt(source), row.location)
        return [] if built is None else [Question(built.ids, source, target)]

    def _prompt(self, source: str) -> list[Part]:
        return [Part(self._before, is_fixed=True), Part(source), Part(self._after, is_fixed=True)]
