"""`orchestrator evaluate`: how well a model predicts held-out text, or does a task."""

from typing import Any

from modules.config import DataConfig, ObjectiveConfig, TokenizerConfig
from modules.data.shards import TokenStream
from modules.data.tokenizer import END_OF_TEXT
from modules.tasks.settings import TaskConfig, TranslationConfig
from modules.tasks.text_scores import check_sacrebleu
from orchestrator.artifacts.mixture import is_there, sources_of
from orchestrator.artifacts.model_folders import find_model
from orchestrator.artifacts.models import TrainedModel, load_model
from orchestrator.artifacts.opened_data import open_tokens
from orchestrator.artifacts.prepared_data import DataRequirements, prepared_data
from orchestrator.artifacts.prepared_texts import text_notes
from orchestrator.artifacts.recipe import fingerprint
from orchestrator.configuration.commands import EvaluateConfig
from orchestrator.display.classification import show_classification
from orchestrator.display.confusion_picture import confusion_picture
from orchestrator.display.progress import evaluate_progress, prepare_progress, requests_progress, rows_progress
from orchestrator.display.results import show_answers, show_evaluation, show_measurement, show_task_figures
from orchestrator.display.terminal import print_line
from orchestrator.errors import UserError
from orchestrator.evaluation.harness.environment import prepare_harness
from orchestrator.evaluation.measurement import Measurement
from orchestrator.evaluation.record import Evaluation, record
from orchestrator.evaluation.task_evaluation import adapter_identity, evaluated, measured
from orchestrator.evaluation.tracked_run import run_of, track
from orchestrator.runs.tracking import Tracker
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage
from orchestrator.training.evaluation import Windows, compression, evaluate


def run(config: EvaluateConfig) -> None:
    """Measure a model on a task, on tasks of lm-evaluation-harness, or on how well it predicts text."""
    if config.harness.tasks:
        _measure_on_harness(config)
    elif config.task is not None:
        _measure_on_rows(config, config.task)
    else:
        _evaluate_text(config)


def _measure_on_rows(config: EvaluateConfig, task: TaskConfig) -> None:
    """Measure a model on the rows of a task, and show, write and track the figures."""
    assert config.data is not None  # a rule between the settings
    if isinstance(task, TranslationConfig):
        check_sacrebleu()
    path, root = config.model.path, Storage(config.storage.root)
    found, settings = find_model(path, config.model.revision), evaluated(config)
    limits = {"limit": config.max_sequences, "num_samples": config.num_samples}
    with rows_progress() as progress:
        figures = measured(config, config.data, task, config.model, progress, **limits)
    _show(figures, f"{redact(path)}: {task.name}, {config.split} split, {len(figures.places):,} rows")
    entry = Evaluation(task.name, settings, figures.metrics, _details(figures), _picture(figures, settings))
    print_line(f"evaluation: {record(path, found, root, [entry], config.to)}")
    # a model with an adapter is another one than its run has trained
    run = None if config.model.adapter else run_of(found.folder, root)
    if run is not None:
        for line in track(run, root, figures.metrics, print_line, lambda tracker: _log_confusion(tracker, figures)):
            print_line(line)


def _show(figures: Measurement, title: str) -> None:
    for line in figures.notes:
        print_line(line)
    show_answers(figures.samples)
    if figures.confusion is not None:
        show_classification(figures.labels, figures.confusion)
    show_measurement(title, figures.metrics, figures.signatures)


def _details(figures: Measurement) -> dict[str, Any]:
    details: dict[str, Any] = {"rows": len(figures.places), **figures.signatures}
    if figures.samples:
        details["samples"] = [sample._asdict() for sample in figures.samples]
    if figures.confusion is not None:
        details |= {"labels": list(figures.labels), "confusion": figures.confusion.astype(int).tolist()}
    return details


def _picture(figures: Measurement, settings: dict[str, Any]) -> dict[str, bytes]:
    """Return the confusion matrix as a picture, by the name of its file, which another measurement does not have."""
    if figures.confusion is None:
        return {}
    name = f"confusion-{fingerprint(settings)[:8]}.png"
    return {name: confusion_picture(figures.labels, figures.confusion)}


def _log_confusion(tracker: Tracker, figures: Measurement) -> None:
    if figures.confusion is not None:
        tracker.log_confusion(f"{figures.task}/confusion_matrix", figures.labels, figures.confusion.tolist())


def _evaluate_text(config: EvaluateConfig) -> None:
    """Load the model, find or prepare the text, and show the metrics."""
    trained = load_model(config.model.path, config.model.revision, config.model.adapter, needs_head=True)
    data_name = _text(config, trained)
    streams = _streams(config, data_name)
    length = config.sequence_length or trained.validation_length
    if length > trained.model.config.max_positions:
        raise UserError(f"sequence_length={length}: the model has {trained.model.config.max_positions} positions")
    if length > trained.context_length:
        print_line(f"sequence_length={length}: the model learned only its first {trained.context_length} positions")
    windows = {
        source: Windows.of(stream, length, config.batch_size, config.max_sequences)
        for source, stream in streams.items()
    }
    objective = _objective(config, trained)
    seed = trained.recipe.get("seed", 0) if config.seed is None else config.seed
    with evaluate_progress(sum(of_source.count for of_source in windows.values())) as progress:
        metrics = evaluate(trained, windows, trained.recipe.get("mixture", {}), objective, seed, progress)
    if "val/bits_per_byte" not in metrics:
        print_line("bits per byte are not known: the text was prepared by a version that did not count its bytes")
    show_evaluation(config.model.path, metrics, compression(trained, windows[""]) if "" in windows else {})
    settings = {
        "data": data_name,
        "part": config.part,
        "sequence_length": length,
        "max_sequences": config.max_sequences,
        "mlm_probability": objective.mlm_probability,
        "seed": seed,
        **({"adapter": adapter_identity(config.model.adapter)} if config.model.adapter else {}),
    }
    path, root = config.model.path, Storage(config.storage.root)
    found = find_model(path, config.model.revision)
    print_line(f"evaluation: {record(path, found, root, [Evaluation('text', settings, metrics)], config.to)}")


def _measure_on_harness(config: EvaluateConfig) -> None:
    """Check the tasks, load the model, show its figures and keep them beside it and in W&B."""
    prepare_harness()
    from orchestrator.evaluation.harness.run import measure
    from orchestrator.evaluation.harness.tasks import load_tasks

    tasks = load_tasks(config.harness)
    found, root = find_model(config.model.path, config.model.revision), Storage(config.storage.root)
    trained = load_model(config.model.path, config.model.revision, config.model.adapter, needs_head=True)
    with requests_progress() as progress:
        measured = measure(trained, tasks, config.harness, f"model.path={redact(config.model.path)}", progress)
    figures = ((one.task, one.num_fewshot, one.metric, one.value, one.stderr) for one in measured.figures)
    show_task_figures(config.model.path, figures)
    print_line(f"evaluation:  {record(config.model.path, found, root, measured.evaluations, config.to)}")
    run = run_of(found.folder, root)
    for line in track(run, root, measured.metrics, print_line) if run else ():
        print_line(line)


def _text(config: EvaluateConfig, trained: TrainedModel) -> str:
    """Return the prepared text, relative to the storage root."""
    storage = Storage(config.storage.root)
    if config.data is None:
        name = trained.recipe.get("data")
        if name is None or not is_there(storage, name):
            raise UserError(
                f"data: the text that {config.model.path} was trained on is not in {storage.url()}; "
                "name a text with data=files data.path=…, or its storage.root"
            )
    else:
        name = _prepared(config.data, config, trained, storage)
    for line in text_notes(storage, name):
        print_line(line)
    return name


def _streams(config: EvaluateConfig, name: str) -> dict[str, TokenStream]:
    """Return the text that is measured: without a name, or of each source of a mixture that holds out some."""
    storage = Storage(config.storage.root)
    names, most = sources_of(storage, name), config.storage.cache_bytes
    found = {source: open_tokens(storage, of, most) for source, of in names.items()}
    if "" in found:
        data = found[""]
        return {"": data.train if config.data is not None and config.part == "all" else data.val}
    held_out = {source: data.val for source, data in found.items() if len(data.val)}
    if not held_out:
        raise UserError(
            f"data: the texts of {config.model.path} hold out nothing; name a text with data=files data.path=…"
        )
    return held_out


def _prepared(data: DataConfig, config: EvaluateConfig, trained: TrainedModel, storage: Storage) -> str:
    if config.part == "all":
        data = data.model_copy(update={"val_fraction": 0.0})
    end_token = trained.tokenizer.end_token
    tokenizer = TokenizerConfig(
        kind="file",
        path=trained.tokenizer_path,
        end_token=None if end_token == END_OF_TEXT else end_token,
        # a model that was continued here has learned documents that begin with it
        begin_token=trained.tokenizer.begin_token if "base_model" in trained.recipe else None,
    )
    with prepare_progress() as progress:
        return prepared_data(storage, data, tokenizer, DataRequirements(), progress)


def _objective(config: EvaluateConfig, trained: TrainedModel) -> ObjectiveConfig:
    if config.mlm_probability is None:
        return trained.objective
    return trained.objective.model_copy(update={"mlm_probability": config.mlm_probability})
