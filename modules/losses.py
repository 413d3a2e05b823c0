"""The causal and the masked loss of a micro-batch, as sums over its targets.

Shapes: B batch, T positions, K chosen positions, D width.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from modules.data.batches import Batch
from modules.model import GPT


class LossSum(NamedTuple):
    """A loss summed over the targets of a micro-batch: sums add up over micro-batches and workers, means do not."""

    total: Tensor
    """Sum of the losses in nats, a float32 scalar with gradients."""
    num_targets: float
    """Targets, or the sum of their weights where they have some."""


class Statistics(NamedTuple):
    """Sums over a batch that add up over batches and workers, without gradients."""

    nats: Tensor | float
    """Sum of the losses, float32 scalar."""
    correct: Tensor | int
    """Targets that the model finds likeliest, int64 scalar."""
    count: int
    """Targets."""


def causal_loss(model: GPT, batch: Batch) -> LossSum:
    """Next-token cross entropy, summed over all B x T positions."""
    targets = batch["targets"]
    return LossSum(model.head(_causal_hidden(model, batch), targets), targets.numel())


def masked_loss(model: GPT, batch: Batch) -> LossSum:
    """Cross entropy, summed over the B x K chosen positions, each seen from both sides (Devlin et al. 2018)."""
    targets = batch["mlm_targets"]
    return LossSum(model.head(_masked_hidden(model, batch), targets), targets.numel())


def causal_statistics(model: GPT, batch: Batch) -> Statistics:
    """What `causal_loss` sums up, without gradients."""
    return Statistics(*model.head.statistics(_causal_hidden(model, batch), batch["targets"]), batch["targets"].numel())


def masked_statistics(model: GPT, batch: Batch) -> Statistics:
    """What `masked_loss` sums up, without gradients; `correct` gives the masked accuracy."""
    targets = batch["mlm_targets"]
    return Statistics(*model.head.statistics(_masked_hidden(model, batch), targets), targets.numel())


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum that is minimised, a scalar; a single loss of weight 1 is itself, without a step of autograd."""
    if len(losses) == 1 and set(weights.values()) == {1.0}:
        return next(iter(losses.values()))
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _causal_hidden(model: GPT, batch: Batch) -> Tensor:
    return model(batch["input_ids"], causal=True, document_ids=batch.get("document_ids"))


def _masked_hidden(model: GPT, batch: Batch) -> Tensor:
    """Hidden states [B x K, D] of the chosen positions: no other enters the head."""
    hidden = model(batch["mlm_input_ids"], causal=False, document_ids=batch.get("document_ids"))
    positions = batch["mlm_positions"]
    offsets = positions.new_tensor(range(0, hidden.shape[0] * hidden.shape[1], hidden.shape[1]))
    return hidden.flatten(0, 1).index_select(0, (positions + offsets[:, None]).flatten())
