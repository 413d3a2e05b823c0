"""Validate at an interval, at the objective's milestones and at the end, and generate samples."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from modules.data.batches import Batch
from modules.generation.sampling import Sampling
from modules.gpt_module import GPTModule


class Validation(Callback):
    """Measures the objective on the same held-out batches each time.

    Lightning's own loop has a single interval and no milestones.

    Args:
        batches: This rank's micro-batches of every validation.
        due: Returns whether to validate after a step.
        sampling: How the objective's prompt is continued after each validation; None samples nothing.
        report: Receives the metrics, by name, and the tokens of the prompt and each sample, int64 [num_sequences, T].
        pause: Excludes the time of a validation from the throughput.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        due: Callable[[int], bool],
        sampling: Sampling | None,
        report: Callable[[int, dict[str, float], Tensor | None], None],
        pause: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._batches, self._due, self._sampling = batches, due, sampling
        self._report, self._pause = report, pause

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Validate a run that had finished all steps but not its last validation."""
        if pl_module.step >= trainer.max_steps:
            self._validate(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Validate when it is due."""
        if pl_module.ends_step(index) and self._due(pl_module.step):
            with self._pause():
                self._validate(trainer, pl_module)

    @torch.no_grad()
    def _validate(self, trainer: Trainer, module: GPTModule) -> None:
        strategy: Any = trainer.strategy
        module.eval()
        sums = [strategy.validation_step(strategy.batch_to_device(batch), i) for i, batch in enumerate(self._batches)]
        metrics = module.objective.validation_metrics(strategy.reduce(torch.stack(sums).sum(0), reduce_op="sum"))
        samples = self._sample(trainer, module) if self._sampling else None
        module.train()
        self._report(module.step, metrics, samples)

    def _sample(self, trainer: Trainer, module: GPTModule) -> Tensor:
        prompt = module.objective.prompt_ids
        samples = torch.stack(trainer.strategy.predict_step((prompt, self._sampling), 0), dim=1).cpu()
        # decoded without the prompt, a sample may lose the space before it
        return torch.cat([torch.tensor(prompt).expand(len(samples), -1), samples], dim=1)
