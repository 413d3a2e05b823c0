"""Rules between the settings of the commands that measure and use a model."""

from collections.abc import Iterable

from modules.config import Config
from orchestrator.configuration.commands import CompareConfig, EvaluateConfig, PredictConfig
from orchestrator.configuration.decoding import AnswerConfig, MeasureConfig
from orchestrator.configuration.schema import shown

_OF_TEXT = ("part", "mlm_probability", "seed")
_OF_A_TASK = (
    *(set(AnswerConfig.model_fields) - {"sequence_length", "batch_size"}),
    *(set(MeasureConfig.model_fields) - set(AnswerConfig.model_fields) - {"to"}),
    "num_samples",
)
TEXT_OR_TASK = frozenset({"task", "data", *_OF_TEXT, *_OF_A_TASK})
"""What `text_or_a_task` reads."""


def text_or_a_task(config: EvaluateConfig) -> list[str]:
    """Return the settings that have no effect on what is evaluated, and what is missing for a task."""
    if config.task is None:
        return [
            f"{name}={value}: belongs to a task; name one with task=…, or leave it out"
            for name, value in _given(config, sorted(_OF_A_TASK))
        ]
    lines = [
        f"{name}={value}: belongs to text; a task has split, and rows to read from; leave it out"
        for name, value in _given(config, _OF_TEXT)
    ]
    missing = "data: must be given with a task, whose rows it names: data=files data.path=…"
    return [*lines, *([missing] if config.data is None else [])]


def one_other(config: CompareConfig) -> list[str]:
    """Return what is wrong with the model that another is compared with."""
    other = config.other
    if other.path is None and other.predictions is None:
        return ["other.path: must be given, the model to compare with; or other.predictions, a .jsonl of predictions"]
    if other.path is not None and other.predictions is not None:
        return [f"other.predictions={shown(other.predictions)}: other.path is given, too; give one of the two"]
    if other.path is None:
        given = [(name, value) for name in ("revision", "adapter") if (value := getattr(other, name)) is not None]
        return [f"other.{name}={shown(value)}: belongs to other.path; leave it out" for name, value in given]
    return []


def one_source_of_questions(config: PredictConfig) -> list[str]:
    """Return what is wrong with text and data."""
    lines = []
    if config.text is None and config.data is None:
        lines.append("text: must be given, or rows with data=files data.path=…")
    if config.text is not None and config.data is not None:
        lines.append(f"text={shown(config.text)}: data has the texts; give one of the two")
    if config.pair is not None and config.text is None:
        lines.append(f"pair={shown(config.pair)}: is the second text, and there is no first; give text=…, too")
    return lines


def output_suits_the_rows(config: PredictConfig) -> list[str]:
    """Return what is wrong with output."""
    if config.output is None:
        return []
    lines = []
    if config.data is None:
        lines.append(f"output={shown(config.output)}: belongs to data; give that instead of text, or > FILE")
    if not config.output.lower().endswith(".jsonl"):
        lines.append(f"output={shown(config.output)}: must end in .jsonl, a line for each row")
    return lines


def _given(config: Config, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the fields that are not at their defaults, as they are shown."""
    fields = type(config).model_fields
    return [(name, shown(getattr(config, name))) for name in names if getattr(config, name) != fields[name].default]
