"""Which module holds which task; only that of the task that is asked for is imported."""

from collections.abc import Sequence
from importlib import import_module

from modules.chat_template import ChatTemplate
from modules.data.tokenizer import Tokenizer
from modules.tasks.inputs import TaskInputs
from modules.tasks.settings import TaskConfig
from modules.tasks.task import Task

TASKS = {
    "classification": "modules.tasks.classification",
    "translation": "modules.tasks.translation",
    "dialogue": "modules.tasks.dialogue",
    "text_generation": "modules.tasks.text_generation",
}
"""Modules by the name of the task; each has a function `build(inputs)`."""


def build_task(
    settings: TaskConfig,
    tokenizer: Tokenizer,
    sequence_length: int,
    *,
    labels: Sequence[str] = (),
    template: ChatTemplate | None = None,
) -> Task:
    """Return the task that `settings` name, with a tally of its own.

    Args:
        settings: The configuration of the task.
        tokenizer: The model's.
        sequence_length: Most tokens of an example; of a question, too, so who generates leaves room for the answer.
        labels: For a classification, the names of the classes in the order of their numbers.
        template: For a dialogue, how the model's turns are written.

    Raises:
        InputError: The model cannot be used for it.
    """
    module = import_module(TASKS[settings.name])
    return module.build(TaskInputs(settings, tokenizer, sequence_length, tuple(labels), template))
