"""`orchestrator finetune`: a model learns a task."""

from typing import TYPE_CHECKING, Any

from orchestrator.artifacts.prepared_task import PreparedExamples, TaskRequest, prepared_task
from orchestrator.cluster.base import Launcher
from orchestrator.cluster.launchers import drive_run
from orchestrator.cluster.strategy_choice import with_strategy
from orchestrator.cluster.training_run import complete_run, show_run
from orchestrator.configuration.commands import FinetuneConfig
from orchestrator.configuration.rules import notes, sequence_mistakes
from orchestrator.configuration.signatures import without_signatures
from orchestrator.display.progress import prepare_progress
from orchestrator.display.terminal import print_line
from orchestrator.errors import ConfigError
from orchestrator.planning.choice import choice_of
from orchestrator.runs.run import training_recipe
from orchestrator.runs.tracking import check_environment
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage
from orchestrator.training.finetuning import TaskExamples

if TYPE_CHECKING:
    from orchestrator.artifacts.base_model import BaseModel


def run(config: FinetuneConfig) -> None:
    """Prepare the examples, train and show the results; for a complete run only show them."""
    drive_run(config, _drive)


def _drive(config: FinetuneConfig, launcher: Launcher) -> None:
    storage = Storage(config.storage.root)
    check_environment(config.tracking)
    config, base, examples = prepared(config, storage)
    for line in notes(config):
        print_line(line)
    config, line = with_strategy(config, lambda: examples.vocab_size)
    if line:
        print_line(line)
    recipe = training_recipe(config, examples.name, base.identity, command="finetune")
    config = without_signatures(config)
    this_run = complete_run(storage, launcher, config, recipe, examples.files, TaskExamples(examples.name, config))
    show_run(storage, this_run, _try_it(config, storage.url(this_run.model_name)))


def prepared(config: FinetuneConfig, storage: Storage) -> tuple[FinetuneConfig, "BaseModel", PreparedExamples]:
    """Return the configuration with all that follows from the model and from the examples, and both.

    Raises:
        UserError, InputError: the model cannot learn the task, or the rows cannot be used; nothing is left behind.
    """
    config, base = _begun_from(config)
    with prepare_progress() as progress:
        wanted = TaskRequest(config.task, config.data, base.files, config.training.sequence_length)
        examples = prepared_task(storage, wanted, progress)
    for line in examples.notes:
        print_line(line)
    config = _fitted_to(config, base, examples)
    _check_validation(config, examples)
    return config, base, examples


def _begun_from(config: FinetuneConfig) -> tuple[FinetuneConfig, "BaseModel"]:
    """Return the configuration with the shape of the model that learns, and that model.

    Raises:
        ConfigError: the model has too few positions, or another shape than was given.
    """
    from orchestrator.artifacts.base_model import open_base_model

    base = open_base_model(config.model, needs_mask=False, to_classify=config.task.name == "classification")
    config = config.model_copy(update={"model": base.config})
    if mistakes := sequence_mistakes(config):
        raise ConfigError("\n".join(mistakes))
    print_line(f"begins from {redact(base.config.path or '')}")
    return config, base


def _fitted_to(config: FinetuneConfig, base: "BaseModel", examples: PreparedExamples) -> FinetuneConfig:
    """Return the configuration with what follows from the examples: labels, rows for new tokens, number of steps."""
    from orchestrator.artifacts.base_model import with_rows_for

    classifier = examples.classifier(config.task)
    if classifier is not None and (note := base.score_note(classifier)):
        print_line(note)
    num_rows, first_new = config.model.vocab_size or 0, base.tokenizer.vocab_size
    model = with_rows_for(config.model, num_rows, examples.vocab_size, first_new)
    model = model.model_copy(update={"classifier": classifier})
    if config.finetune.weights == "random":
        model = model.model_copy(update={"path": None, "revision": None})
    config = config.model_copy(update={"model": model})
    return config.model_copy(update=_lengths(config, examples))


def _lengths(config: FinetuneConfig, examples: PreparedExamples) -> dict[str, Any]:
    """Return the groups with the number of steps, and with how many of them are warm-up."""
    settings, training, optimizer = config.finetune, config.training, config.optimizer
    if settings.num_epochs is not None:
        num_steps = examples.num_steps(settings.num_epochs, training.global_batch_size)
        plural = "" if settings.num_epochs == 1 else "s"
        print_line(f"{settings.num_epochs:g} epoch{plural}: {num_steps:,} steps")
        training = training.model_copy(update={"num_steps": num_steps})
    if settings.warmup_fraction is not None:
        warmup_steps = round(settings.warmup_fraction * training.num_steps)
        optimizer = optimizer.model_copy(update={"warmup_steps": warmup_steps})
    return {"training": training, "optimizer": optimizer}


def _check_validation(config: FinetuneConfig, examples: PreparedExamples) -> None:
    """Refuse to choose the best validation where nothing is held out.

    Raises:
        ConfigError: there is no validation row.
    """
    if choice_of(config).needs_every_validation and not examples.splits["val"]["num_examples"]:
        raise ConfigError(
            f"finetune.keep={config.finetune.keep}: the data has no validation row by which the best step is chosen; "
            "set data.val_fraction above 0, or finetune.keep=last and finetune.patience=null"
        )


def _try_it(config: FinetuneConfig, model: str) -> str:
    if config.task.name == "dialogue":
        return f"orchestrator chat model.path={model}"
    return f'orchestrator predict model.path={model} text="…"'
