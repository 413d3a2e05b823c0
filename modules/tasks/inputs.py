"""What a task is made of."""

from typing import Any, NamedTuple

from modules.chat_template import ChatTemplate
from modules.data.tokenizer import Tokenizer


class TaskInputs(NamedTuple):
    """What `build_task` hands to the module of a task; each takes what it needs."""

    settings: Any
    """The configuration of that task."""
    tokenizer: Tokenizer
    sequence_length: int
    """Most tokens of an example or a question."""
    labels: tuple[str, ...]
    """Names of the classes in the order of their numbers."""
    template: ChatTemplate | None
    """How the model's turns are written; None if it is no chat model."""
