"""The metric of a trial by step, from what its run has written to storage."""

from collections.abc import Mapping

from orchestrator.configuration.commands import FinetuneConfig, PretrainConfig, TrainingRunConfig
from orchestrator.planning.choice import choice_of
from orchestrator.runs.history import read_history
from orchestrator.runs.run import find_run
from orchestrator.storage.store import Storage

_OF_TEXT = {"clm": ("val/loss_clm", "val/bits_per_byte"), "mlm": ("val/loss_mlm", "val/mlm_accuracy")}
_OF_CLASSES = ("val/macro_f1", "val/accuracy", "val/loss_classification")


def metrics_of(config: TrainingRunConfig) -> list[str]:
    """Return what a run measures that trials can be compared by, the usual one first."""
    if isinstance(config, FinetuneConfig) and config.task.name == "classification":
        found = _OF_CLASSES
    elif isinstance(config, PretrainConfig):
        learned = {name for phase in config.objective.phases for name, weight in phase.weights.items() if weight}
        found = [metric for name, metrics in _OF_TEXT.items() if name in learned for metric in metrics]
    else:
        found = ("val/loss_clm",)
    chosen = choice_of(config).metric
    return sorted(found, key=lambda metric: metric != chosen)


def metric_by_step(storage: Storage, run_name: str, metric: str) -> dict[int, float]:
    """Return what the history of a run holds of a metric; values that are not finite are nan."""
    entries = read_history(storage, run_name)
    return {entry.step: entry.metrics[metric] for entry in entries if metric in entry.metrics}


def final_metrics(storage: Storage, run_name: str) -> Mapping[str, float]:
    """Return the metrics of a complete run; empty if it is not complete."""
    run = find_run(storage, run_name)
    return (run.metrics(storage) if run else None) or {}
