"""What is minimised: causal and masked losses, and the phases that weigh them.

Shapes: B batch, T positions, K chosen positions, D width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modules.config import ObjectiveConfig
from modules.model import GPT

Batch = Mapping[str, Any]


class LossSums(NamedTuple):
    """Sums over a batch that add up over batches and workers."""

    nats: Tensor | float
    """Sum of the losses, float32 scalar."""
    correct: Tensor | int
    """Targets that the model finds likeliest, int64 scalar."""
    count: int
    """Targets."""


def causal_loss(model: GPT, batch: Batch) -> Tensor:
    """Mean next-token cross entropy in nats, over all B x T positions."""
    return model.head(_causal_hidden(model, batch), batch["targets"])


def masked_loss(model: GPT, batch: Batch) -> Tensor:
    """Mean cross entropy in nats at the B x K chosen positions, seen from both sides (Devlin et al. 2018)."""
    return model.head(_masked_hidden(model, batch), batch["mlm_targets"])


def causal_statistics(model: GPT, batch: Batch) -> LossSums:
    """What `causal_loss` is the mean of, as sums, without gradients."""
    return LossSums(*model.head.statistics(_causal_hidden(model, batch), batch["targets"]), batch["targets"].numel())


def masked_statistics(model: GPT, batch: Batch) -> LossSums:
    """What `masked_loss` is the mean of, as sums, without gradients; `correct` gives the masked accuracy."""
    targets = batch["mlm_targets"]
    return LossSums(*model.head.statistics(_masked_hidden(model, batch), targets), targets.numel())


def phase_of_step(config: ObjectiveConfig, step: int, num_steps: int) -> int:
    """Number of the phase that a step, counted from 0, belongs to: exactly one, and the last from `num_steps` on.

    A phase ends where the lengths so far add up to, rounded to the nearest step (halves up). A fraction is one of
    `num_steps`. A phase shorter than half a step can be left with no step at all.
    """
    ends = phase_ends(config, num_steps)
    return next((number for number, end in enumerate(ends) if step < end), len(ends) - 1)


def phase_ends(config: ObjectiveConfig, num_steps: int) -> list[int]:
    """The step after the last one of each phase; that of the last phase is `num_steps`."""
    ends, total = [], 0.0
    for phase in config.phases:
        total += phase.steps if phase.steps is not None else (phase.fraction or 0.0) * num_steps
        # A sum of fractions misses a half by a rounding error; 1e-6 steps are none.
        ends.append(min(int(total + 0.5 + 1e-6), num_steps))
    return [*ends[:-1], num_steps]


def objective_weights(config: ObjectiveConfig, step: int, num_steps: int) -> dict[str, float]:
    """Weights of the objectives, `clm` and `mlm`, that count in a step; those of weight 0 are left out."""
    weights = config.phases[phase_of_step(config, step, num_steps)].weights
    return {name: weight for name, weight in weights.items() if weight > 0}


def sum_of_losses(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum that is minimised, a scalar; a single loss of weight 1 is itself, without a step of autograd."""
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
