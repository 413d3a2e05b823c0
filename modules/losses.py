"""The causal and the masked loss of a micro-batch, as sums over its targets.

Shapes: B batch, T positions, K predicted positions, D width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modules.data.batches import Batch
from modules.model import GPT


class LossSum(NamedTuple):
    """A loss summed over a micro-batch's targets. Sums can be added over micro-batches and workers, means cannot."""

    total: Tensor
    """Sum of the losses in nats, a float32 scalar with gradients."""
    num_targets: float
    """Number of targets, or the sum of their weights if they have weights."""


class Statistics(NamedTuple):
    """Sums over a batch, without gradients, that can be added over batches and workers."""

    nats: Tensor | float
    """Sum of the losses in nats, float32 scalar."""
    correct: Tensor | int
    """Number of targets that are the model's most likely token, int64 scalar."""
    count: int
    """Number of targets."""


def causal_loss(model: GPT, batch: Batch) -> LossSum:
    """Return the next-token cross entropy, summed over all B x T positions."""
    targets = batch["targets"]
    return LossSum(model.head(causal_hidden(model, batch), targets), targets.numel())


def masked_loss(model: GPT, batch: Batch) -> LossSum:
    """Return the cross entropy of the B x K predicted positions with context from both sides (Devlin et al. 2018)."""
    targets = batch["mlm_targets"]
    return LossSum(model.head(masked_hidden(model, batch), targets), targets.numel())


def causal_statistics(model: GPT, batch: Batch) -> Statistics:
    """Return the sums of `causal_loss`, without gradients."""
    return Statistics(*model.head.statistics(causal_hidden(model, batch), batch["targets"]), batch["targets"].numel())


def masked_statistics(model: GPT, batch: Batch) -> Statistics:
    """Return the sums of `masked_loss`, without gradients; `correct` / `count` is the masked accuracy."""
    targets = batch["mlm_targets"]
    return Statistics(*model.head.statistics(masked_hidden(model, batch), targets), targets.numel())


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the scalar to minimise; a single loss of weight 1 is returned unchanged, without an autograd node."""
    if len(losses) == 1 and set(weights.values()) == {1.0}:
        return next(iter(losses.values()))
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def causal_hidden(model: GPT, batch: Batch) -> Tensor:
    """Return the hidden states [B, T, D] that predict the next tokens."""
    return model(batch["input_ids"], causal=True, **_documents(batch))


def _documents(batch: Batch) -> dict[str, Any]:
    """Return what a batch says of the documents in its rows, nothing if attention crosses them."""
    return {name: batch[name] for name in ("lengths", "offsets", "positions") if name in batch}


def masked_hidden(model: GPT, batch: Batch) -> Tensor:
    """Return the hidden states [B x K, D] of the predicted positions; only these enter the head."""
    hidden = model(batch["mlm_input_ids"], causal=False, **_documents(batch))
    positions = batch["mlm_positions"]
    offsets = positions.new_tensor(range(0, hidden.shape[0] * hidden.shape[1], hidden.shape[1]))
    return hidden.flatten(0, 1).index_select(0, (positions + offsets[:, None]).flatten())
