"""`orchestrator batch`: what a run has learned from in a step."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import yaml
from pydantic import ValidationError

from modules.config import ObjectiveConfig, TrainingConfig
from orchestrator.checkpoints.names import committed_steps, is_committed_step, name_of
from orchestrator.configuration.batch import BatchConfig
from orchestrator.configuration.commands import FinetuneConfig, PretrainConfig
from orchestrator.configuration.rules import micro_batch_size
from orchestrator.display.batch import lines, show_step
from orchestrator.display.terminal import print_line
from orchestrator.errors import UserError
from orchestrator.runs.asked_steps import AskedStep, Course
from orchestrator.runs.data_steps import Stretch, read_data_steps
from orchestrator.runs.run import Run, existing_run
from orchestrator.runs.step_rows import SampleRow, StepRow, sorted_by_loss
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.local import use_cache_folder
from orchestrator.storage.new_file import NewLines
from orchestrator.storage.store import Storage
from orchestrator.training.step_data import Measure, StepData


def run(config: BatchConfig) -> None:
    """Show the samples of each step that is asked for, or write a line for each."""
    use_cache_folder(config.storage.cache_dir)
    storage = Storage(config.storage.root)
    this_run = existing_run(storage, "run.name", config.run.name)
    size = this_run.recipe["training"]["global_batch_size"]
    steps = read_data_steps(storage, this_run, size)
    course = Course(this_run.name, steps, size, lambda stretch: _micro_batch_size(storage, this_run, stretch))
    asked = course.asked(config)
    output = NewLines(config.output, "output=") if config.output else None
    _check_checkpoint(storage, config)
    data = StepData.open(storage, this_run, config.storage.cache_bytes)
    measure = None if config.checkpoint.step is None else _measure(storage, this_run, config.checkpoint.step)
    number = 0
    with output or nullcontext():
        for one in asked:
            step, samples = _described(course, data, one, measure)
            number += len(samples)
            if output:
                output.add("".join(lines(step, samples)))
            else:
                show_step(step, samples)
    if not number:
        raise UserError(f"worker={config.worker}: has computed none of the samples that are asked for; leave one out")
    if output:
        print_line(f"wrote {number:,} samples to {output.url}")
    if any(rows is None for rows in data.rows.values()):
        print_line(
            "files and rows are not known: an earlier version has prepared this data; without its folder the command "
            "of the run prepares it anew, with the same tokens and with them"
        )


def _described(
    course: Course, data: StepData, asked: AskedStep, measure: Measure | None
) -> tuple[StepRow, Sequence[SampleRow]]:
    """Return a step, and its samples; with their losses the highest first, and so their documents."""
    first, last = course.samples(asked.data_step)
    step = StepRow(
        step=asked.step,
        data_step=asked.data_step,
        first_sample=first,
        last_sample=last,
        weights=data.weights(asked.step),
        phase=data.phase(asked.step),
        world_size=asked.stretch.world_size,
        notes=asked.notes,
    )
    samples = [*data.samples(np.array(asked.samples, dtype=np.int64), asked.workers, asked.step, measure)]
    return step, samples if measure is None else sorted_by_loss(samples, step.weights)


def _check_checkpoint(storage: Storage, config: BatchConfig) -> None:
    name, step = config.run.name, config.checkpoint.step
    if step is not None and not is_committed_step(storage, name, step):
        there = ", ".join(map(str, committed_steps(storage, name)))
        are = f"there are {there}" if there else "it has none"
        raise UserError(f"checkpoint={step}: run {name} has no finished checkpoint after it; {are}")


def _measure(storage: Storage, this_run: Run, step: int) -> Measure:
    """Return the model of a checkpoint, which computes as in its training but for dropout."""
    # imported here, because Lightning, which reads checkpoints, takes seconds to load
    from orchestrator.artifacts.models import TrainedModel
    from orchestrator.checkpoints.checkpoint import open_checkpoint
    from orchestrator.checkpoints.trained_model import trained_model
    from orchestrator.runs.exportable import exportable

    source = exportable(storage, this_run, open_checkpoint(storage, name_of(this_run.name, step)))
    training = TrainingConfig.model_validate(this_run.recipe["training"])
    model = TrainedModel(trained_model(source), source.tokenizer, "", {}, this_run.recipe, training, ObjectiveConfig())
    return Measure(model.model, model.precision())


def _micro_batch_size(storage: Storage, this_run: Run, stretch: Stretch) -> int | None:
    """Return the samples that a worker computed at once, by the run's present configuration; None if it does not tell.

    Runs begun by a version that did not record it have no other source.
    """
    kind = FinetuneConfig if this_run.recipe["command"] == "finetune" else PretrainConfig
    try:
        settings = yaml.safe_load(storage.read_bytes(f"{this_run.folder}/config.yaml"))
        return micro_batch_size(kind.model_validate(settings), stretch.world_size)
    except (NotFoundError, yaml.YAMLError, ValidationError):
        return None
