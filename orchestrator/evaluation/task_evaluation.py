"""A model measured on a task: from its path and those of the rows to its figures."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from modules.config import DataConfig
from modules.huggingface.folder import ADAPTER_WEIGHTS
from modules.tasks.settings import TaskConfig
from orchestrator.artifacts.model_folders import find_adapter
from orchestrator.artifacts.models import load_model
from orchestrator.artifacts.recipe import identity
from orchestrator.artifacts.split_files import find_split_files
from orchestrator.configuration.commands import CompareConfig, EvaluateConfig, ModelPath
from orchestrator.configuration.decoding import MeasureConfig
from orchestrator.evaluation.measurement import Measurement, MeasureSettings, OnProgress, measure
from orchestrator.evaluation.task_model import TaskModel
from orchestrator.evaluation.task_rows import TaskRows
from orchestrator.storage.input_files import find_files
from orchestrator.storage.redaction import redact


def measured(
    config: MeasureConfig,
    data: DataConfig,
    task: TaskConfig,
    model: ModelPath,
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
        model: Where the model is.
        on_progress: Takes the number of rows; returns what receives the number of those that are done.
        limit: Read no more rows.
        num_samples: Answers to look at.

    Raises:
        UserError: The model cannot do the task, or the message lists the rows that cannot be used.
    """
    asked = TaskModel(load_model(model.path, model.revision, model.adapter), task, config, model.path)
    notes = [f"note: {line}" for line in asked.notes()]
    rows = TaskRows(data, task, asked.task(), config.split, limit=limit)
    found = measure(asked, rows, MeasureSettings(config.bleu_tokenizer, num_samples), on_progress)
    return replace(found, notes=[*notes, *found.notes])


def evaluated(config: EvaluateConfig | CompareConfig) -> dict[str, Any]:
    """Return all that decides the figures beside the model: the settings, and the rows by their content."""
    assert config.data is not None  # a rule between the settings
    files_of = find_split_files(config.data)
    files = {split: [[file.name, file.identity()] for file in files] for split, files in files_of.items() if files}
    named = [*map(redact, config.data.path), config.data.revision]
    adapter = {} if config.model.adapter is None else {"adapter": adapter_identity(config.model.adapter)}
    return {**identity(config), "rows": files or named, **adapter}


def adapter_identity(path: str) -> list[str]:
    """Return what changes with the content of an adapter, and its path."""
    (weights,) = find_files([f"{find_adapter(path).folder.url}/{ADAPTER_WEIGHTS}"])
    return [redact(path), weights.identity()]
