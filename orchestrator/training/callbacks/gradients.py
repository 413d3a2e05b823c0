"""The norm of the whole gradient: measured in each step, and clipped unless DeepSpeed does it."""

import math
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.optim import Optimizer

from modules.gpt_module import GPTModule
from modules.optimizer import clipped_parameters
from orchestrator.distributed.strategy import gradient_norm


class ClipGradients(Callback):
    """Clips the gradient to `max_norm` (None only measures it), without Muon's part; for one process and DDP."""

    def __init__(self, max_norm: float | None) -> None:
        self._max_norm = math.inf if max_norm is None else max_norm
        self._parameters: list[Tensor] = []
        self._clipped: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Collect the parameters once: for a small model that costs more than the norm."""
        self._parameters = list(pl_module.parameters())
        self._clipped = clipped_parameters(trainer.strategy.optimizers[0])

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: GPTModule, optimizer: Optimizer) -> None:
        """Clip after accumulation and unscaling, just before the optimizer step."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # Lightning leaves the unscaling to a fused optimizer, which would do it after clipping
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm(weight.grad for weight in self._parameters if weight.grad is not None)
        torch.nn.utils.clip_grads_with_norm_(self._clipped, self._max_norm, norm)
        pl_module.last_metrics["optimizer/grad_norm"] = norm


class DeepSpeedGradientNorm(Callback):
    """Reports the norm under ZeRO, where DeepSpeed clips by its own configuration."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, *args: Any) -> None:
        """Store the norm of the step that has just finished."""
        norm = gradient_norm(trainer)
        if norm is not None:
            pl_module.last_metrics["optimizer/grad_norm"] = norm
