"""Validate at an interval, at the objective's milestones and at the end, and generate samples."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from modules.data.batches import Batch
from modules.generation.sampling import Sampling
from modules.gpt_module import GPTModule
from orchestrator.training.samples import Samples, generate


class Validation(Callback):
    """Measures the objective on the same held-out batches each time.

    Lightning's own loop has a single interval and no milestones.

    Args:
        batches: This rank's micro-batches of every validation.
        due: Returns whether to validate after a step.
        owed: Returns whether the validation after the step with which the fit begins has still to be done.
        sampling: How the objective's prompts are continued after each validation, and how many samples there are; None
            samples nothing.
        report: Receives the metrics, by name, and the samples; returns whether the training is over.
        outside_steps: Entered for a validation after a step, which is no part of it.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        due: Callable[[int], bool],
        owed: Callable[[int], bool],
        sampling: Sampling | None,
        report: Callable[[int, dict[str, float], Samples | None], bool],
        outside_steps: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._batches, self._due, self._owed, self._sampling = batches, due, owed, sampling
        self._report, self._outside_steps = report, outside_steps

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Validate where a run was interrupted between a step and its validation."""
        if self._owed(pl_module.step):
            self._validate(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Validate when it is due."""
        if pl_module.ends_step(index) and self._due(pl_module.step):
            with self._outside_steps():
                self._validate(trainer, pl_module)

    @torch.no_grad()
    def _validate(self, trainer: Trainer, module: GPTModule) -> None:
        strategy: Any = trainer.strategy
        module.eval()
        sums = [strategy.validation_step(strategy.batch_to_device(batch), i) for i, batch in enumerate(self._batches)]
        metrics = module.objective.validation_metrics(strategy.reduce(torch.stack(sums).sum(0), reduce_op="sum"))
        samples = generate(trainer, module, self._sampling, len(sums)) if self._sampling else None
        module.train()
        if self._report(module.step, metrics, samples):
            trainer.should_stop = True
