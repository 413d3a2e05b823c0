"""Average a step's metrics over all workers when they are due, and pass them to tracking and progress display."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from modules.gpt_module import GPTModule


class Metrics(Callback):
    """Logs every `interval_steps` and after the first and the last step; other steps cost no synchronisation.

    Args:
        extra: Returns this process's further metrics, such as throughput, by name.
        saved: Returns the metrics of the last step before the checkpoint from which the run continues.
        report: Receives step and metrics, on rank 0 only.
    """

    def __init__(
        self,
        interval_steps: int,
        extra: Callable[[], dict[str, float]],
        saved: Callable[[], dict[str, float]],
        report: Callable[[int, dict[str, float]], None],
    ) -> None:
        self._interval_steps, self._extra, self._saved, self._report = interval_steps, extra, saved, report

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Report the last step of a run that was interrupted after it; there is no other step to report."""
        if pl_module.step >= trainer.max_steps and trainer.is_global_zero:
            self._report(pl_module.step, {**self._extra(), **self._saved()})

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Report when it is due; all ranks take part in the mean of the losses."""
        if not pl_module.ends_step(index) or not is_reported(pl_module.step, self._interval_steps, trainer.max_steps):
            return
        metrics = step_metrics(trainer, pl_module)
        if trainer.is_global_zero:
            self._report(pl_module.step, {**metrics, **self._extra()})


def is_reported(step: int, interval_steps: int, num_steps: int) -> bool:
    """Return whether the metrics of a step are reported."""
    return step % interval_steps == 0 or step in (1, num_steps)


def step_metrics(trainer: Trainer, module: GPTModule) -> dict[str, float]:
    """Return the metrics of the step that has just finished, averaged over all workers, who call this together.

    Raises:
        RuntimeError: the step's batches held another number of targets than the objective reported.
    """
    own, targets = module.last_metrics, module.num_targets
    means = _mean_over_workers(trainer, [*own.values(), *(counted for counted, _ in targets.values())])
    _check_targets(module, [mean * trainer.world_size for mean in means[len(own) :]])
    return {
        **dict(zip(own, means, strict=False)),
        "progress/step": module.step,
        "progress/tokens": module.num_tokens,
        **{f"progress/tokens/{name}": number for name, number in module.source_tokens.items()},
    }


def _check_targets(module: GPTModule, counted: list[float]) -> None:
    """Check the objective's number of targets, by which every loss and gradient was divided.

    Args:
        counted: Targets of each loss in the step, over all workers.

    Raises:
        RuntimeError: the workers' batches held a different number of targets; raised on all workers.
    """
    for (name, (_, expected)), found in zip(module.num_targets.items(), counted, strict=True):
        if not math.isclose(found, expected, rel_tol=1e-5):  # the counts were summed in float32
            text = f"{found:g} targets of {name}, but the objective reported {expected:g}"
            raise RuntimeError(f"step {module.step}: {text}")


def _mean_over_workers(trainer: Trainer, own: list[Tensor | float]) -> list[float]:
    # learning rate and gradient norm are equal on all workers, so averaging does not change them
    device = trainer.strategy.root_device
    values = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in own])
    return trainer.strategy.reduce(values, reduce_op="mean").tolist()
