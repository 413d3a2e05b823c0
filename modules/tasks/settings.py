"""Settings of each task. This module imports nothing heavy, so that the command line can read it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from modules.config import Config, Factor, Identity, Input

Cut = Literal["right", "left", "drop", "refuse"]
"""What becomes of an example that is longer than a sequence: its right or left end is cut off, or it is dropped or
refused."""
FieldPath = Annotated[str, Field(min_length=1)]


class ClassificationConfig(Config):
    """A text, or a pair of texts, and the label of its class."""

    name: Identity[Literal["classification"]] = "classification"
    """The task."""
    text_field: Identity[FieldPath] = "text"
    """Field of the text; a dot leads into a nested one."""
    pair_field: Identity[FieldPath | None] = None
    """Field of a second text, which is read after the first one; null reads one text."""
    separator: Identity[str] = "\n"
    """Between the two texts of a pair."""
    label_field: Identity[FieldPath] = "label"
    """Field of the label: a text, a whole number, or true or false."""
    labels: Identity[tuple[str, ...]] = ()
    """The labels in the order of their numbers; empty takes those of the training split, sorted."""
    attention: Identity[Literal["causal", "bidirectional"]] = "causal"
    """`causal` classifies by the last token, `bidirectional` by the mean of all, as suits the masked objective."""
    class_weights: Identity[Literal["none", "balanced"] | dict[str, Factor]] = "none"
    """Weights of the losses: `none`, `balanced` (rare labels count more), or a weight for each label."""
    too_long: Identity[Cut] = "right"
    """A text with more tokens than a sequence: cut at its `right` or `left`, `drop` it or `refuse` it."""

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if doubled := sorted({label for label in self.labels if self.labels.count(label) > 1}):
            raise ValueError(f"labels {doubled[0]!r}: is named twice; name each once")
        if len(self.labels) == 1:
            raise ValueError(f"labels {self.labels[0]!r}: one label leaves nothing to learn; name two or more")
        return self


class TranslationConfig(Config):
    """A text and its translation."""

    name: Identity[Literal["translation"]] = "translation"
    """The task."""
    source_field: Identity[FieldPath] = "source"
    """Field of the text that is translated; a dot leads into a nested one."""
    target_field: Identity[FieldPath] = "target"
    """Field of its translation."""
    prompt: Identity[str] = "Source:\n{source}\nTranslation:\n"
    """What the model reads before it translates; {source} stands for the text. It should not end with a space, which
    most tokenizers put into the first token of the next word."""
    too_long: Identity[Cut] = "right"
    """A pair with more tokens than a sequence: cut at its `right` or `left`, `drop` it or `refuse` it."""

    @model_validator(mode="after")
    def _prompt_has_a_place(self) -> Self:
        if self.prompt.count("{source}") != 1:
            raise ValueError(f"prompt {self.prompt!r}: must hold {{source}} once, where the text is put")
        return self


class DialogueConfig(Config):
    """A conversation, of which the assistant's turns are learned."""

    name: Identity[Literal["dialogue"]] = "dialogue"
    """The task."""
    messages_field: Identity[FieldPath] = "messages"
    """Field of the conversation: a list of {role, content} with the roles system, user and assistant."""
    chat_template: Input[str | None] = None
    """A Jinja file (any fsspec URL) that writes the conversation; null: the model's own, or ours if made here."""
    new_tokens: Identity[tuple[str, ...]] = ()
    """Control tokens of that template which the model does not have; each gets a row of its own, which is learned."""
    end_token: Identity[str | None] = None
    """The token that ends a turn of the assistant; null finds it in what the template writes."""
    too_long: Identity[Cut] = "left"
    """A conversation with more tokens than a sequence: cut at its `right` or `left`, `drop` it or `refuse` it."""


class TextGenerationConfig(Config):
    """Documents, on which the training of a language model goes on."""

    name: Identity[Literal["text_generation"]] = "text_generation"
    """The task."""
    text_field: Identity[FieldPath] = "text"
    """Field of the text; a dot leads into a nested one."""
    too_long: Identity[Literal["split", "right", "left", "drop", "refuse"]] = "split"
    """A document with more tokens than a sequence: `split` it into several, or as in the other tasks."""


def _task_name(value: Any) -> Any:
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)


TaskConfig = Annotated[
    Annotated[ClassificationConfig, Tag("classification")]
    | Annotated[TranslationConfig, Tag("translation")]
    | Annotated[DialogueConfig, Tag("dialogue")]
    | Annotated[TextGenerationConfig, Tag("text_generation")],
    Discriminator(_task_name),
]
"""The settings of any task, told apart by its name."""
