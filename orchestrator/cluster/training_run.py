"""The way of every training command: open its run, take its lease, start its workers, and show what came out."""

import os
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any

from orchestrator.checkpoints.attempt import Attempt
from orchestrator.cluster.base import Launcher
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.groups import StorageConfig
from orchestrator.display.progress import ProgressDisplay
from orchestrator.display.results import show_results
from orchestrator.display.terminal import print_line
from orchestrator.runs import run as runs
from orchestrator.runs.events import DRIVER_KINDS, EventLog
from orchestrator.runs.goodput import goodput
from orchestrator.runs.lease import lease
from orchestrator.runs.run import Job, ObjectiveSource, Run
from orchestrator.runs.tracking import key_place
from orchestrator.storage.store import Storage


def complete_run(
    storage: Storage,
    launcher: Launcher,
    config: TrainingRunConfig,
    recipe: dict[str, Any],
    base_files: Mapping[str, bytes],
    objective: ObjectiveSource,
) -> Run:
    """Train the run of this recipe to its end, from its newest checkpoint; a complete one is only shown.

    Args:
        storage: Where the run is kept.
        launcher: What starts the workers.
        config: The whole configuration, without what the workers must not see.
        recipe: What decides the weights.
        base_files: Small files of the model that is continued; empty without one.
        objective: Where the workers find what they learn.

    Raises:
        UserError: a run of this name was begun with another recipe, or the training ended with an error.
    """
    this_run = runs.open_run(storage, config, recipe)
    if not this_run.is_complete(storage):
        keep = partial(runs.keep, storage, this_run, config)
        wait_seconds = config.cluster.lease_wait_seconds
        with (
            lease(storage, this_run.name, on_renewal=keep, wait_seconds=wait_seconds, on_wait=print_line) as attempt,
            ProgressDisplay() as display,
        ):
            runs.begin(storage, this_run, config, base_files)
            events = EventLog(storage, this_run.folder, DRIVER_KINDS)
            events.record({"kind": "launch", "host": socket.gethostname(), "pid": os.getpid()})
            launcher.launch(_job(config, storage, this_run, attempt, objective), events.and_then(display))
    return this_run


def show_run(storage: Storage, this_run: Run, try_it: str) -> None:
    """Print the figures of a complete run, where everything is, and how to use its model."""
    spent = goodput(EventLog(storage, this_run.folder).read())
    lines = [
        f"model: {storage.url(this_run.model_name)}",
        f"metrics: {storage.url(this_run.metrics_name)}",
        *this_run.where_to_look(storage),
        f"try it: {try_it}",
    ]
    show_results(this_run.name, this_run.metrics(storage) or {}, spent, lines)


def _job(
    config: TrainingRunConfig,
    storage: Storage,
    this_run: Run,
    attempt: Attempt,
    objective: ObjectiveSource,
) -> Job:
    """Return the job for the workers, which may start in other folders: its root is absolute."""
    for_workers = config.model_copy(update={"storage": StorageConfig(root=storage.url())})
    return Job(for_workers, this_run, attempt, objective, driver_has_wandb_key=key_place() is not None)
