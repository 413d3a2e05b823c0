"""`evaluate task=…`: the journey from the rows of a split to figures, evaluation.json and W&B."""

from collections.abc import Callable
from typing import Any

from modules.config import DataConfig
from modules.tasks.settings import TaskConfig, TranslationConfig
from modules.tasks.text_scores import check_sacrebleu
from orchestrator.artifacts.model_folders import FoundModel, find_model
from orchestrator.artifacts.models import load_model
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.artifacts.split_files import find_split_files
from orchestrator.configuration.commands import CompareConfig, EvaluateConfig
from orchestrator.configuration.decoding import MeasureConfig
from orchestrator.display.classification import show_classification
from orchestrator.display.confusion_picture import confusion_picture
from orchestrator.display.progress import rows_progress
from orchestrator.display.results import show_answers, show_measurement
from orchestrator.display.terminal import print_line
from orchestrator.evaluation.measurement import Measurement, MeasureSettings, OnProgress, measure
from orchestrator.evaluation.record import Evaluation, record
from orchestrator.evaluation.task_model import TaskModel
from orchestrator.evaluation.task_rows import TaskRows
from orchestrator.evaluation.tracked_run import run_of, track
from orchestrator.runs.tracking import Tracker
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage


def evaluate_task(config: EvaluateConfig, task: TaskConfig) -> None:
    """Measure a model on a task, and show, write and track the results."""
    assert config.data is not None  # a rule between the settings
    if isinstance(task, TranslationConfig):
        check_sacrebleu()
    path, revision = config.model.path, config.model.revision
    found, settings = find_model(path, revision), evaluated(config)
    limits = {"limit": config.max_sequences, "num_samples": config.num_samples}
    with rows_progress() as progress:
        measurement = measured(config, config.data, task, path, revision, progress, **limits)
    _show(measurement, f"{redact(path)}: {task.name}, {config.split} split, {len(measurement.places):,} rows")
    root = Storage(config.storage.root)
    results = Evaluation(
        task.name, settings, measurement.metrics, _details(measurement), _picture(measurement, settings)
    )
    print_line(f"written to {record(path, found, root, [results])}")
    _track(found, root, measurement)


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
    """
    model = TaskModel(load_model(path, revision), task, config, path)
    for line in model.notes():
        print_line(f"note: {line}")
    rows = TaskRows(data, task, model.task(), config.split, limit=limit)
    return measure(model, rows, MeasureSettings(config.bleu_tokenizer, num_samples), on_progress)


def _show(measurement: Measurement, title: str) -> None:
    for line in measurement.notes:
        print_line(line)
    show_answers(measurement.samples)
    if measurement.confusion is not None:
        show_classification(measurement.labels, measurement.confusion)
    show_measurement(title, measurement.metrics, measurement.signatures)


def _details(measurement: Measurement) -> dict[str, Any]:
    details: dict[str, Any] = {"rows": len(measurement.places), **measurement.signatures}
    if measurement.confusion is not None:
        details |= {"labels": list(measurement.labels), "confusion": measurement.confusion.astype(int).tolist()}
    return details


def _picture(measurement: Measurement, settings: dict[str, Any]) -> dict[str, bytes]:
    """Return the confusion matrix as a picture, by the name of its file, which another measurement does not have."""
    if measurement.confusion is None:
        return {}
    name = f"confusion-{fingerprint(settings)[:8]}.png"
    return {name: confusion_picture(measurement.labels, measurement.confusion)}


def _track(found: FoundModel, root: Storage, measurement: Measurement) -> None:
    run = run_of(found.folder, root)
    if run is None:
        return

    def log_plots(tracker: Tracker) -> None:
        if measurement.confusion is not None:
            name = f"{measurement.task}/confusion_matrix"
            tracker.log_confusion(name, measurement.labels, measurement.confusion.tolist())

    for line in track(run, root, measurement.metrics, print_line, log_plots):
        print_line(line)


def evaluated(config: EvaluateConfig | CompareConfig) -> dict[str, Any]:
    """Return all that decides the figures beside the model: the settings, and the rows by their content."""
    assert config.data is not None
    files_of = find_split_files(config.data)
    files = {split: [[file.name, file.identity()] for file in files] for split, files in files_of.items() if files}
    named = [*map(redact, config.data.path), config.data.revision]
    return {**identity(config), "rows": files or named}
