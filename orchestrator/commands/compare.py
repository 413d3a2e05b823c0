"""`orchestrator compare`: two models on the same rows of a task."""

from typing import Any

from modules.tasks.bootstrap import Difference, paired_bootstrap
from modules.tasks.settings import TranslationConfig
from modules.tasks.text_scores import check_sacrebleu
from orchestrator.artifacts.base_model import model_identity
from orchestrator.artifacts.model_folders import find_model
from orchestrator.configuration.commands import CompareConfig, ModelPath
from orchestrator.display.progress import rows_progress
from orchestrator.display.results import show_comparison
from orchestrator.display.terminal import print_line
from orchestrator.errors import UserError
from orchestrator.evaluation.measurement import Measurement
from orchestrator.evaluation.predictions import measured_predictions, predictions_file
from orchestrator.evaluation.record import Evaluation, record
from orchestrator.evaluation.task_evaluation import adapter_identity, evaluated, measured
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage

_PER_TOKEN = ("loss", "perplexity")


def run(config: CompareConfig) -> None:
    """Measure both on the same rows, and show and write how sure their differences are."""
    if isinstance(config.task, TranslationConfig):
        check_sacrebleu()
    found, other = find_model(config.model.path, config.model.revision), _other(config)
    about = {**evaluated(config), "other": other}
    first = _measured(config, config.model)
    second = _second(config, first)
    _check_same_rows(first, second)
    pairs = {name: (first.scorers[name], second.scorers[name]) for name in _comparable(first, second)}
    differences = paired_bootstrap(pairs, len(first.places), config.num_resamples, config.seed)
    named = {f"{first.task}/{name}": difference for name, difference in differences.items()}
    print_line(f"A: {redact(config.model.path)}")
    print_line(f"B: {redact(config.other.path or config.other.predictions or '')}")
    title = f"{first.task}, {config.split} split, {len(first.places):,} rows, {config.num_resamples:,} resamples"
    show_comparison(title, named, first.signatures)
    details = {"rows": len(first.places), **first.signatures}
    result = Evaluation(f"compare/{first.task}", about, {name: _plain(one) for name, one in named.items()}, details)
    place = record(config.model.path, found, Storage(config.storage.root), [result], config.to)
    print_line(f"evaluation: {place}")


def _other(config: CompareConfig) -> dict[str, Any]:
    """Return what changes with the content of what the model is compared with; it is looked for before all work."""
    if config.other.path is None:
        file = predictions_file(str(config.other.predictions), config.task)
        return {"predictions": [file.name, file.identity()]}
    adapter = {} if config.other.adapter is None else {"adapter": adapter_identity(config.other.adapter)}
    return {**model_identity(config.other.path, find_model(config.other.path, config.other.revision)), **adapter}


def _second(config: CompareConfig, first: Measurement) -> Measurement:
    if config.other.path is not None:
        other = config.other
        return _measured(config, ModelPath(path=config.other.path, revision=other.revision, adapter=other.adapter))
    file = predictions_file(str(config.other.predictions), config.task)
    return measured_predictions(file, config.data, first, config.bleu_tokenizer)


def _measured(config: CompareConfig, model: ModelPath) -> Measurement:
    """Return how well one model does; it is out of memory then."""
    with rows_progress() as progress:
        found = measured(config, config.data, config.task, model, progress, limit=config.max_rows)
    for line in found.notes:
        print_line(f"{redact(model.path)}: {line}")
    return found


def _check_same_rows(first: Measurement, second: Measurement) -> None:
    """Refuse to compare what was measured on different rows, or by different classes.

    Raises:
        UserError: It was.
    """
    if set(first.labels) != set(second.labels):
        odd = sorted(set(first.labels) ^ set(second.labels))
        raise UserError(f"other.path: the models have different labels; one of them lacks {', '.join(odd[:10])}")
    if first.places != second.places:
        odd = sorted(set(first.places) ^ set(second.places))
        raise UserError(
            f"task.too_long: {len(odd):,} rows were dropped for one model and not for the other (first: {odd[0]}); cut "
            "them with task.too_long=right or left"
        )


def _comparable(first: Measurement, second: Measurement) -> list[str]:
    """Return the metrics that mean the same for both."""
    common = [name for name in first.scorers if name in second.scorers]
    if first.tokenizer == second.tokenizer or not set(common) & set(_PER_TOKEN) or first.labels:
        return common
    print_line("the models have different tokenizers, so their losses of a token are not compared; bits per byte are")
    return [name for name in common if name not in _PER_TOKEN]


def _plain(found: Difference) -> dict[str, float]:
    return {**found._asdict(), "difference": found.difference}
