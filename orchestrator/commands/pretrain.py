"""`orchestrator pretrain`: text to a trained model."""

import os
import socket
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.artifacts.prepared_data import DataRequirements, data_notes, prepared_data
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.cluster.launchers import launcher_for
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.configuration.groups import StorageConfig
from orchestrator.configuration.rules import notes, sequence_mistakes
from orchestrator.display.progress import ProgressDisplay, prepare_progress
from orchestrator.display.results import show_results
from orchestrator.display.terminal import print_line
from orchestrator.errors import ConfigError
from orchestrator.runs import run as runs
from orchestrator.runs.events import DRIVER_KINDS, EventLog
from orchestrator.runs.goodput import goodput
from orchestrator.runs.lease import lease
from orchestrator.runs.run import Job, Run
from orchestrator.runs.tracking import check_environment
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage
from orchestrator.training.pretraining import PreparedText

if TYPE_CHECKING:
    from orchestrator.artifacts.base_model import BaseModel


def run(config: PretrainConfig) -> None:
    """Prepare the data, train and show the results; for a complete run only show them."""
    storage = Storage(config.storage.root)
    launcher = launcher_for(config)
    check_environment(config.tracking)
    for line in notes(config):
        print_line(line)
    config, base = _continued(config)
    requirements = DataRequirements(
        max_vocab_size=config.model.vocab_size, sequence_length=config.training.sequence_length
    )
    with prepare_progress() as progress:
        data_name = prepared_data(storage, config.data, config.tokenizer, requirements, progress)
    for line in data_notes(storage, data_name):
        print_line(line)
    this_run = runs.open_run(storage, config, runs.training_recipe(config, data_name, base and base.identity))
    if not this_run.is_complete(storage):
        keep = partial(runs.keep, storage, this_run, config)
        with lease(storage, this_run.name, on_renewal=keep) as attempt, ProgressDisplay() as display:
            runs.begin(storage, this_run, config, base.files if base else {})
            events = EventLog(storage, this_run.folder, DRIVER_KINDS)
            events.record({"kind": "launch", "host": socket.gethostname(), "pid": os.getpid()})
            launcher.launch(_job(config, storage, this_run, attempt, data_name), events.and_then(display))
    spent = goodput(EventLog(storage, this_run.folder).read())
    show_results(this_run.name, this_run.metrics(storage) or {}, spent, _locations(storage, this_run))


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


def _job(config: PretrainConfig, storage: Storage, this_run: Run, attempt: Attempt, data_name: str) -> Job:
    """Return the job for the workers.

    They may start in other folders, so the root is made absolute; they do not read what was prepared from, so they get
    its URLs without the signatures.
    """
    data = config.data.model_copy(update={"path": tuple(map(redact, config.data.path))})
    tokenizer = config.tokenizer.model_copy(update={"path": config.tokenizer.path and redact(config.tokenizer.path)})
    root = StorageConfig(root=storage.url())
    for_workers = config.model_copy(update={"storage": root, "data": data, "tokenizer": tokenizer})
    return Job(for_workers, this_run, attempt, PreparedText(data_name, for_workers))


def _locations(storage: Storage, this_run: Run) -> list[str]:
    """Return lines that say where everything is and how to view it."""
    model = storage.url(this_run.model_name)
    return [
        f"model: {model}",
        f"metrics: {storage.url(this_run.metrics_name)}",
        *this_run.where_to_look(storage),
        f'try it: orchestrator generate model.path={model} prompt="import os"',
    ]
