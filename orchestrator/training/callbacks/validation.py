"""Validates at an interval, at the end of each phase and at the end, and shows generated samples beside it."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from modules.gpt_module import GPTModule
from modules.objectives import Batch
from modules.validation import validation_metrics


class Validation(Callback):
    """Measures the objectives of all phases on the same held-out batches each time, whatever the phase.

    Lightning's own loop knows only one interval; phases end where they end.

    Args:
        batches: This rank's micro-batches of every validation.
        due: Tells whether a validation follows the step just finished.
        prompt: What is sampled after each validation, arguments of `generation.sample`; None samples nothing.
        report: Receives the metrics, by name, and the sampled token ids, int64 [num_sequences, T].
        pause: Keeps the time of a validation out of the throughput.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        due: Callable[[int], bool],
        prompt: dict[str, Any] | None,
        report: Callable[[int, dict[str, float], Tensor | None], None],
        pause: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._batches, self._due, self._prompt, self._report, self._pause = batches, due, prompt, report, pause

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """A run that was complete but for its last figures gets them now."""
        if pl_module.step >= trainer.max_steps:
            self._validate(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Validate when it is due."""
        if (index + 1) % pl_module.accumulation_steps == 0 and self._due(pl_module.step):
            with self._pause():
                self._validate(trainer, pl_module)

    @torch.no_grad()
    def _validate(self, trainer: Trainer, module: GPTModule) -> None:
        strategy: Any = trainer.strategy
        module.eval()
        sums = torch.stack(
            [strategy.validation_step(strategy.batch_to_device(batch), i) for i, batch in enumerate(self._batches)]
        ).sum(0)
        metrics = validation_metrics(strategy.reduce(sums, reduce_op="sum"))
        samples = self._sample(trainer) if self._prompt else None
        module.train()
        self._report(module.step, metrics, samples)

    def _sample(self, trainer: Trainer) -> Tensor:
        return torch.stack(trainer.strategy.predict_step(self._prompt, 0), dim=1).cpu()
