"""Which validation is the best of a run, and when a run that no longer gets better stops."""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.configuration.commands import FinetuneConfig, TrainingRunConfig
from orchestrator.configuration.groups import CheckpointConfig

_HIGHER_IS_BETTER = ("accuracy", "f1")


@dataclass(frozen=True)
class Choice:
    """How the step is chosen whose model a run exports: a function of its validations, the same when it is resumed."""

    metric: str
    """The figure of a validation that decides."""
    keeps_best: bool = False
    """Whether the model of the best validation is exported, and not that of the last step."""
    patience: int | None = None
    """Validations in a row without a better figure after which the run stops; None: never."""

    @property
    def needs_every_validation(self) -> bool:
        """Whether each validation decides something, so that none may be missing, and each has its checkpoint."""
        return self.keeps_best or self.patience is not None

    def is_over(self, scores: Mapping[int, float]) -> bool:
        """Return whether a run of these scores by step, lower ones being better, has stopped getting better."""
        if self.patience is None or not scores:
            return False
        return sum(step > best_step(scores) for step in scores) >= self.patience

    def exported_step(self, scores: Mapping[int, float], last_step: int) -> int:
        """Return the step whose model is exported."""
        return best_step(scores) if self.keeps_best and scores else last_step


def score_of(metric: str, value: float) -> float:
    """Return a figure such that lower is better."""
    return -value if metric.endswith(_HIGHER_IS_BETTER) else value


def best_step(scores: Mapping[int, float]) -> int:
    """Return the step of the lowest score, the earliest of several."""
    return min(scores, key=lambda step: (scores[step], step))


def choice_of(config: TrainingRunConfig) -> Choice:
    """Return how a run chooses the step whose model it exports."""
    if not isinstance(config, FinetuneConfig):
        return Choice(config.checkpoint.best_metric)
    usual = "val/macro_f1" if config.task.name == "classification" else "val/loss_clm"
    return Choice(config.finetune.metric or usual, config.finetune.keep == "best", config.finetune.patience)


def kept_checkpoints(config: TrainingRunConfig) -> CheckpointConfig:
    """Return which checkpoints a run keeps, with the one that it may export in the end."""
    if not choice_of(config).keeps_best:
        return config.checkpoint
    return config.checkpoint.model_copy(update={"keep_best": max(config.checkpoint.keep_best, 1)})
