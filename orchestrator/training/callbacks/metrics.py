"""Average a step's metrics over all workers when they are due, and pass them to tracking and progress display."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from modules.gpt_module import GPTModule


class Metrics(Callback):
    """Logs every `interval_steps` and after the first and the last step; other steps cost no synchronisation.

    Args:
        tokens_per_step: Over all workers.
        extra: Returns this process's further metrics, such as throughput, by name.
        report: Receives step and metrics, on rank 0 only.
    """

    def __init__(
        self,
        interval_steps: int,
        tokens_per_step: int,
        extra: Callable[[], dict[str, float]],
        report: Callable[[int, dict[str, float]], None],
    ) -> None:
        self._interval_steps, self._tokens_per_step = interval_steps, tokens_per_step
        self._extra, self._report = extra, report

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Report when it is due; all ranks take part in the mean of the losses."""
        if not pl_module.ends_step(index) or not self._is_due(pl_module.step, trainer.max_steps):
            return
        metrics = _mean_over_workers(trainer, {**pl_module.last_metrics, **_counted(pl_module)})
        _check_targets(pl_module, {name: metrics.pop(name) * trainer.world_size for name in _counted(pl_module)})
        if trainer.is_global_zero:
            metrics |= {
                "progress/step": pl_module.step,
                "progress/tokens": pl_module.step * self._tokens_per_step,
                **self._extra(),
            }
            self._report(pl_module.step, metrics)

    def _is_due(self, step: int, num_steps: int) -> bool:
        return step % self._interval_steps == 0 or step in (1, num_steps)


def _counted(module: GPTModule) -> dict[str, float]:
    return {f"num_targets/{name}": counted for name, (counted, _) in module.num_targets.items()}


def _check_targets(module: GPTModule, counted: dict[str, float]) -> None:
    """Check the objective's number of targets, by which every loss and gradient was divided.

    Raises:
        RuntimeError: the workers' batches held a different number of targets; raised on all workers.
    """
    for name, (_, expected) in module.num_targets.items():
        found = counted[f"num_targets/{name}"]
        if not math.isclose(found, expected, rel_tol=1e-5):  # the counts were summed in float32
            text = f"{found:g} targets of {name}, but the objective reported {expected:g}"
            raise RuntimeError(f"step {module.step}: {text}")


def _mean_over_workers(trainer: Trainer, metrics: dict[str, Any]) -> dict[str, float]:
    # learning rate and gradient norm are equal on all workers, so averaging does not change them
    device = trainer.strategy.root_device
    values = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in metrics.values()])
    return dict(zip(metrics, trainer.strategy.reduce(values, reduce_op="mean").tolist(), strict=True))
