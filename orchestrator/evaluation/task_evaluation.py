"""A model measured on a task: from its path and those of the rows to its figures."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from modules.config import DataConfig
from modules.tasks.settings import TaskConfig
from orchestrator.artifacts.models import load_model
from orchestrator.artifacts.recipe import identity
from orchestrator.artifacts.split_files import find_split_files
from orchestrator.configuration.commands import CompareConfig, EvaluateConfig
from orchestrator.configuration.decoding import MeasureConfig
from orchestrator.evaluation.measurement import Measurement, MeasureSettings, OnProgress, measure
from orchestrator.evaluation.task_model import TaskModel
from orchestrator.evaluation.task_rows import TaskRows
from orchestrator.storage.redaction import redact


def measured(
    config: MeasureConfig,
    data: DataConfig,
    task: TaskConfig,
    path: str,
    revision: str | None,
    on_progress: Callable[[int], OnProgress],
    *,
    limit: int | None,
    num_samples: int = 0,
) -> Measurement:
    """Return how well a model does a task on the rows of a split; nothing of the model stays in memory.

    Args:
        config: The split, and how questions are asked.
        data: Where the rows are.
        task: The task.
        path: The model as the user named it.
        revision: Of a hub name.
        on_progress: Takes the number of rows; returns what receives the number of those that are done.
        limit: Read no more rows.
        num_samples: Answers to look at.

    Raises:
        UserError: The model cannot do the task, or the message lists the rows that cannot be used.
    """
    model = TaskModel(load_model(path, revision), task, config, path)
    notes = [f"note: {line}" for line in model.notes()]
    rows = TaskRows(data, task, model.task(), config.split, limit=limit)
    found = measure(model, rows, MeasureSettings(config.bleu_tokenizer, num_samples), on_progress)
    return replace(found, notes=[*notes, *found.notes])


def evaluated(config: EvaluateConfig | CompareConfig) -> dict[str, Any]:
    """Return all that decides the figures beside the model: the settings, and the rows by their content."""
    assert config.data is not None  # a rule between the settings
    files_of = find_split_files(config.data)
    files = {split: [[file.name, file.identity()] for file in files] for split, files in files_of.items() if files}
    named = [*map(redact, config.data.path), config.data.revision]
    return {**identity(config), "rows": files or named}
