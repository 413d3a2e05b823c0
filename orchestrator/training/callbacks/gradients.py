"""The norm of the whole gradient: measured in each step, and clipped unless DeepSpeed does it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.optim import Optimizer

from modules.gpt_module import GPTModule
from modules.optimizer import clipped_parameters
from orchestrator.distributed.strategy import gradient_norm

_EPSILON = 1e-6
"""That of `torch.nn.utils.clip_grads_with_norm_`."""
_SURELY_BELOW = 1 - 1e-6
"""Part of the highest norm below which torch's factor is 1, however its four steps in float32 are rounded."""


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
        norm = _total_norm(self._parameters)
        _clip(self._clipped, self._max_norm, norm)
        pl_module.last_metrics["optimizer/grad_norm"] = norm


def _total_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Return the norm of the whole gradient, [], of parameters on one device and of one type.

    It is `torch.nn.utils.get_total_norm`, bit for bit, which first groups the gradients by device and type and takes
    each norm to the device where it is.
    """
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # type: ignore[attr-defined]


def _clip(parameters: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Clip as `torch.nn.utils.clip_grads_with_norm_` does; on CPU only gradients that are too large."""
    # a GPU would have to be waited for
    if norm.device.type == "cpu" and _is_below(norm, max_norm):
        return
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    if gradients:
        factor = torch.clamp(max_norm / (norm + _EPSILON), max=1.0)
        torch._foreach_mul_(gradients, factor)  # type: ignore[attr-defined]


def _is_below(norm: Tensor, max_norm: float) -> bool:
    """Return whether nothing is clipped; waits for the norm's device."""
    return norm.item() + _EPSILON < max_norm * _SURELY_BELOW


class DeepSpeedGradientNorm(Callback):
    """Reports the norm under ZeRO, where DeepSpeed clips by its own configuration."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, *args: Any) -> None:
        """Store the norm of the step that has just finished."""
        norm = gradient_norm(trainer)
        if norm is not None:
            pl_module.last_metrics["optimizer/grad_norm"] = norm
