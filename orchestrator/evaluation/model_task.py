"""The task that a model was made for."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from modules.data.rows import Row
from modules.errors import InputError
from modules.tasks.settings import (
    ClassificationConfig,
    DialogueConfig,
    TaskConfig,
    TextGenerationConfig,
    TranslationConfig,
)
from orchestrator.artifacts.models import TrainedModel
from orchestrator.errors import UserError
from orchestrator.storage.redaction import redact


def task_of(trained: TrainedModel, path: str) -> TaskConfig:
    """Return the task that a model was fine-tuned for, or that its config.json says.

    Args:
        trained: The model.
        path: As the user named it.

    Raises:
        UserError: Neither is known.
    """
    learned = trained.recipe.get("task")
    if learned is not None:
        try:
            return TypeAdapter(TaskConfig).validate_python(learned)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UserError(
                f"model.path={redact(path)}: its recipe.json says a task that is not known here ({reason})"
            ) from error
    classifier = trained.model.config.classifier
    if classifier is not None:
        return ClassificationConfig(attention=classifier.attention)
    raise UserError(
        f"task: {redact(path)} does not say what it was fine-tuned for; name it with task=translation or task=dialogue,"
        " or continue a text with orchestrator generate"
    )


def row_of(settings: TaskConfig, text: str, pair: str | None) -> Row:
    """Return a text, or a pair of texts, as a row of a task.

    Raises:
        InputError: The task takes no such thing.
    """
    if isinstance(settings, TextGenerationConfig):
        raise InputError("task=text_generation: a text is continued by orchestrator generate prompt=…")
    takes_pair = isinstance(settings, ClassificationConfig) and settings.pair_field is not None
    if takes_pair and pair is None:
        raise InputError("pair: must be given, too: the model classifies pairs of texts")
    if pair is not None and not takes_pair:
        raise InputError("pair: belongs to a classification of pairs, and the model takes one text; leave it out")
    values: dict[str, Any] = {}
    if isinstance(settings, ClassificationConfig):
        values = {settings.text_field: text, str(settings.pair_field): pair}
    elif isinstance(settings, TranslationConfig):
        values = {settings.source_field: text}
    elif isinstance(settings, DialogueConfig):
        values = {settings.messages_field: [{"role": "user", "content": text}]}
    return Row(values, "text=…")
