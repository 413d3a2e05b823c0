"""How texts are continued, whoever asks for it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from modules.config import (
    Config,
    Count,
    Factor,
    Identity,
    Input,
    Length,
    Paths,
    Probability,
    Runtime,
    Seed,
    Sequences,
    Small,
)
from orchestrator.configuration.schema import shown
from orchestrator.storage.redaction import without_query

PROMPT_ENDINGS = (".txt", ".jsonl")


def _none_is_empty(texts: tuple[str, ...]) -> tuple[str, ...]:
    if "" in texts:
        raise ValueError("holds an empty text, which would end every text at once; leave it out")
    return texts


class SamplingConfig(Config):
    """How the next token is chosen, and where a text ends."""

    max_new_tokens: Identity[Count] = 50
    """Longest continuation in tokens."""
    temperature: Identity[Factor | None] = None
    """Divides the logits; 0 always takes the most likely token; null takes 1, or 0 in beam search."""
    top_k: Identity[Count | None] = None
    """Sample among the k most likely tokens only."""
    top_p: Identity[Small | None] = None
    """Sample among the most likely tokens that together reach this probability."""
    min_p: Identity[Probability | None] = None
    """Sample among tokens that have at least this share of the highest probability."""
    repetition_penalty: Identity[Annotated[float, Field(gt=0, le=1e6)]] = 1.0
    """Above 1, tokens that the prompt or the text has become less likely; below 1, more likely."""
    stop: Identity[Annotated[Paths, AfterValidator(_none_is_empty)]] = ()
    """A text ends before any of these; one text or a list."""
    seed: Identity[Seed] = 1234
    """The same seed gives the same text."""
    precision: Identity[Annotated[Literal["32", "bf16"], BeforeValidator(str)] | None] = None
    """Of the matrix products; null takes that of the model's training, and 32 for a model of others."""
    prepack: Runtime[bool] = True
    """Lay the weights out for the fastest kernels of this processor before the first token."""

    def drawn(self, default_temperature: float) -> dict[str, Any]:
        """Return the settings by which tokens are drawn, named as in `Sampling`."""
        names = ("max_new_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        temperature = default_temperature if self.temperature is None else self.temperature
        return {"temperature": temperature, **{name: getattr(self, name) for name in names}}


class ContinuationConfig(SamplingConfig):
    """Which prompts are continued, and how."""

    prompt: Identity[str] = ""
    """Text to continue; empty starts from the token that begins a text."""
    prompts_file: Input[str | None] = None
    """Prompts, one a line of a .txt or in the field `prompt` of each row of a .jsonl, also .gz or .zst (any URL)."""
    output: Runtime[str | None] = None
    """A .jsonl that the continuations of prompts_file are written to (any URL); null prints its lines."""
    batch_size: Runtime[Sequences] = 16
    """Prompts of prompts_file that are computed at once."""
    long_prompt: Identity[Literal["refuse", "cut"]] = "refuse"
    """A prompt with more tokens than the model sees at once: `refuse` it, or `cut` it to its end."""
    num_sequences: Identity[Sequences] = 1
    """Continuations of a prompt."""
    num_beams: Identity[Annotated[int, Field(gt=0, le=2**16)]] = 1
    """Above 1, beam search with so many beams, which draws nothing."""
    length_penalty: Identity[Annotated[float, Field(ge=-100, le=100)]] = 1.0
    """Of beam search: above 0 prefers long texts, below 0 short ones."""


class AnswerConfig(Config):
    """How a model is asked the questions of a task."""

    sequence_length: Identity[Annotated[Length, Field(gt=1)] | None] = None
    """Most tokens of an example, its answer included; null takes the length that the model was trained with."""
    batch_size: Runtime[Sequences] = 16
    """Examples computed at once."""
    max_new_tokens: Identity[Count] = 256
    """Longest translation or answer in tokens."""
    num_beams: Identity[Annotated[int, Field(gt=0, le=2**16)]] = 1
    """Above 1, translations and answers come from beam search with so many beams; 1 takes the likeliest tokens."""
    stop: Identity[Annotated[Paths, AfterValidator(_none_is_empty)]] = ()
    """A translation or an answer ends before any of these; one text or a list."""


class MeasureConfig(AnswerConfig):
    """On which rows of a task a model is measured, and how."""

    split: Identity[Literal["test", "val", "train", "all"]] = "test"
    """The rows of a task that are read: those of one split, or `all` whatever their split."""
    bleu_tokenizer: Identity[Literal["13a", "intl", "char", "zh", "none"]] = "13a"
    """How BLEU divides a translation into words: by sacrebleu's name; `zh` for Chinese, `char` for Japanese."""
    to: Runtime[str | None] = None
    """A folder (any fsspec URL) that gets evaluation.json and its pictures; null: beside the model."""


def one_source_of_prompts(config: ContinuationConfig) -> list[str]:
    """Return what is wrong with prompt and prompts_file."""
    if config.prompts_file is None:
        return []
    lines = []
    if config.prompt:
        lines.append(f"prompt={shown(config.prompt)}: prompts_file has the prompts; give one of the two")
    stem = without_query(config.prompts_file).lower()
    if not _without_compression(stem).endswith(PROMPT_ENDINGS):
        rule = "must end in .txt (a prompt a line) or .jsonl (the field `prompt`), and may be compressed, .gz or .zst"
        lines.append(f"prompts_file={shown(config.prompts_file)}: {rule}")
    return lines


def output_suits_the_prompts(config: ContinuationConfig) -> list[str]:
    """Return what is wrong with output."""
    if config.output is None:
        return []
    lines = []
    if config.prompts_file is None:
        lines.append(f"output={shown(config.output)}: belongs to prompts_file; give that instead of prompt, or > FILE")
    if not config.output.lower().endswith(".jsonl"):
        lines.append(f"output={shown(config.output)}: must end in .jsonl, a row for each prompt")
    return lines


def length_penalty_needs_beams(config: ContinuationConfig) -> list[str]:
    """Return whether the length penalty would have no effect."""
    if config.length_penalty == 1 or config.num_beams > 1:
        return []
    return [f"length_penalty={config.length_penalty:g}: belongs to beam search; set num_beams=2 or more"]


def beam_search_draws_nothing(config: ContinuationConfig) -> list[str]:
    """Return the settings that have no meaning in beam search."""
    values = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    if config.num_beams == 1:
        return []
    rule = f"beam search (num_beams={config.num_beams}) draws nothing; leave it out"
    drawing = {
        name: value for name, value in values.items() if value is not None and (name, value) != ("temperature", 0)
    }
    return [f"{name}={shown(value)}: {rule}" for name, value in drawing.items()]


def sequences_are_beams(config: ContinuationConfig) -> list[str]:
    """Return whether more sequences are asked for than beam search finds."""
    if not 1 < config.num_beams < config.num_sequences:
        return []
    rule = f"beam search finds no more than its num_beams={config.num_beams}; raise that or lower num_sequences"
    return [f"num_sequences={config.num_sequences}: {rule}"]


def _without_compression(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")
