"""Documents, on which the training of a language model goes on."""

from collections.abc import Sequence

from modules.data.rows import Row
from modules.errors import InputError
from modules.tasks.fields import given_text
from modules.tasks.inputs import TaskInputs
from modules.tasks.sequences import Part, SequenceBuilder
from modules.tasks.settings import TextGenerationConfig
from modules.tasks.tally import Tally
from modules.tasks.task import Example, Question


def build(inputs: TaskInputs) -> "TextGeneration":
    """Return the task.

    Raises:
        InputError: The tokenizer has no token that ends a document.
    """
    return TextGeneration(inputs.settings, inputs)


class TextGeneration:
    """A document, every token of which but the first is predicted from those before it."""

    def __init__(self, settings: TextGenerationConfig, inputs: TaskInputs):
        self._settings = settings
        self.tally = Tally()
        too_long = "left" if settings.too_long == "split" else settings.too_long
        self._builder = SequenceBuilder(inputs.tokenizer, inputs.sequence_length, too_long, self.tally)
        self._builder.check_end()

    @property
    def fields(self) -> Sequence[str]:
        return (self._settings.text_field,)

    @property
    def optional_fields(self) -> Sequence[str]:
        return ()

    def examples(self, row: Row) -> list[Example]:
        """Return the document, in several sequences where it is too long for one."""
        self.tally.num_rows += 1
        text = given_text(row, self._settings.text_field, "task.text_field")
        if not text:
            self.tally.note("dropped", "no text", row.location)
            return []
        if self._settings.too_long == "split":
            return self._builder.windows(text, row.location)
        return self._builder.with_targets(self._builder.build([Part(text, True)], row.location), row.location)

    def questions(self, row: Row) -> list[Question]:
        """Return the text as one that is to be continued; the end of one that is too long. There is no right answer."""
        self.tally.num_rows += 1
        text = given_text(row, self._settings.text_field, "task.text_field")
        built = self._builder.build([Part(text)], row.location)
        if built is not None and not built.ids:
            raise InputError(f"{row.location}: field {self._settings.text_field!r} is empty; remove the row")
        return [] if built is None else [Question(built.ids, text, None)]
