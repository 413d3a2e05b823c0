"""`orchestrator pretrain`: text to a trained model."""

from typing import TYPE_CHECKING

from orchestrator.artifacts.data_facts import tokenizer_of
from orchestrator.artifacts.prepared_data import DataRequirements
from orchestrator.artifacts.prepared_texts import by_name, num_train_tokens, prepared_texts, text_notes, weights_of
from orchestrator.cluster.base import Launcher
from orchestrator.cluster.launchers import drive_run
from orchestrator.cluster.strategy_choice import with_strategy
from orchestrator.cluster.training_run import complete_run, show_run
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.configuration.rules import notes, sequence_mistakes
from orchestrator.configuration.signatures import without_signatures
from orchestrator.display.progress import prepare_progress
from orchestrator.display.terminal import print_line
from orchestrator.errors import ConfigError
from orchestrator.runs.run import training_recipe
from orchestrator.runs.tracking import check_environment
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage
from orchestrator.training.pretraining import PreparedText

if TYPE_CHECKING:
    from orchestrator.artifacts.base_model import BaseModel


def run(config: PretrainConfig) -> None:
    """Prepare the data, train and show the results; for a complete run only show them."""
    drive_run(config, _drive)


def _drive(config: PretrainConfig, launcher: Launcher) -> None:
    storage = Storage(config.storage.root)
    check_environment(config.tracking)
    for line in notes(config):
        print_line(line)
    config, base = _continued(config)
    requirements = DataRequirements(
        max_vocab_size=config.model.vocab_size, sequence_length=config.training.sequence_length
    )
    with prepare_progress() as progress:
        data_name = prepared_texts(storage, config.data, config.tokenizer, requirements, progress)
    for line in [*text_notes(storage, data_name), *_mixture_notes(storage, data_name, config)]:
        print_line(line)
    config, line = with_strategy(config, lambda: tokenizer_of(storage, data_name).vocab_size)
    if line:
        print_line(line)
    recipe = training_recipe(config, data_name, base and base.identity, weights=weights_of(config.data))
    config = without_signatures(config)
    source = PreparedText(data_name, config)
    this_run = complete_run(storage, launcher, config, recipe, base.files if base else {}, source)
    model = storage.url(this_run.model_name)
    show_run(storage, this_run, f'orchestrator generate model.path={model} prompt="import os"')


def _mixture_notes(storage: Storage, data_name: str, config: PretrainConfig) -> list[str]:
    """Return lines for the user on the weights of a mixture.

    Raises:
        InputError: a source would be read more often than its `max_epochs` allows.
    """
    if config.data.is_single:
        return []
    from modules.data.epochs import check_epochs
    from modules.data.mixed_data import Schedule

    training = config.training
    schedule = Schedule(by_name(config.data), config.objective, training.num_steps, training.global_batch_size)
    notes = schedule.notes()
    check_epochs(schedule, list(num_train_tokens(storage, data_name).values()), training.sequence_length)
    return notes


def _continued(config: PretrainConfig) -> tuple[PretrainConfig, "BaseModel | None"]:
    """Return the configuration with the shape and tokenizer of the model that is continued, and that model.

    Raises:
        ConfigError: the model has too few positions, or another shape than was given.
    """
    if config.model.path is None:
        return config, None
    from orchestrator.artifacts.base_model import open_base_model

    base = open_base_model(config.model, any(phase.weights.get("mlm") for phase in config.objective.phases))
    config = config.model_copy(update={"model": base.config, "tokenizer": base.tokenizer_config})
    if mistakes := sequence_mistakes(config):
        raise ConfigError("\n".join(mistakes))
    print_line(f"continues from {redact(base.config.path or '')}")
    return config, base
