"""`orchestrator plan`: what a training will need and cost, before it starts."""

from typing import cast

from modules.model_config import ClassifierConfig
from orchestrator.artifacts.model_folders import read_shape
from orchestrator.configuration.commands import PlanFinetuneConfig, PlanPretrainConfig
from orchestrator.configuration.rules import device_mistakes, notes, sequence_mistakes
from orchestrator.display.plan import show_plan
from orchestrator.errors import ConfigError
from orchestrator.planning.plan import Plan, PlanConfig


def run(config: PlanPretrainConfig | PlanFinetuneConfig) -> None:
    """Read the settings of the model and the tokenizer where there are any, and show the plan; nothing is written."""
    config, said = _with_shape(config)
    vocab_size, told = _vocab_size(config)
    on_gpu = config.device is None or config.device.is_gpu
    if mistakes := sequence_mistakes(config) + device_mistakes(config.training, on_gpu):
        raise ConfigError("\n".join(mistakes))
    show_plan(Plan(config, vocab_size, [*notes(config), *said, *told]))


def _with_shape(config: PlanConfig) -> tuple[PlanConfig, list[str]]:
    """Return the configuration with the shape of the model that is continued.

    Raises:
        ConfigError: it has another shape than was given.
    """
    model, said = config.model, []
    if model.path is not None:
        try:
            model = model.of(model.path, model.revision, read_shape(model.path, model.revision))
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if isinstance(config, PlanFinetuneConfig):
        if config.task.name == "classification":
            model = model.model_copy(update={"classifier": ClassifierConfig(labels=("0", "1"))})
            said.append("note: reckoned with two labels; their number is known when the rows are read")
        said.append(
            "note: reckoned with whole sequences, each of training.sequence_length tokens; examples are shorter"
        )
    return config.model_copy(update={"model": model}), said


def _vocab_size(config: PlanConfig) -> tuple[int, list[str]]:
    """Return the number of tokens, or the most that there may be, and a note about it.

    Raises:
        ConfigError: it is known only when the text has been read.
    """
    if (given := config.plan.vocab_size or config.model.vocab_size) is not None:
        return given, []
    tokenizer = cast(PlanPretrainConfig, config).tokenizer
    if tokenizer.kind == "char":
        raise ConfigError(
            "tokenizer.kind=char: the number of characters is known only when the text has been read; give it as "
            "plan.vocab_size"
        )
    if tokenizer.kind == "bpe":
        size = tokenizer.vocab_size
        return size, [f"note: reckoned with tokenizer.vocab_size={size} tokens; a BPE of a small text has fewer"]
    # these import numpy and tokenizers, which only this case needs
    from modules.data.tokenizer import build_tokenizer
    from orchestrator.artifacts.prepared_data import read_tokenizer_file

    made = build_tokenizer(tokenizer, lambda: iter(()), read_tokenizer_file(tokenizer))
    return made.vocab_size, []
