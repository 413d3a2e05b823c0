"""What a model looks at, and what it expects next, at each position of a text.

Shapes: T positions, S attended positions, H heads, K key and value heads, W width of a head, L layers, N likeliest
tokens.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modules.attention import DotProduct
from modules.model import GPT


@dataclass(frozen=True)
class Explanation:
    """Attention, and the likeliest next tokens with their probabilities, in float32 on the CPU."""

    attention: Tensor
    """[L, H, T, T]: how much of a position's value (last) goes into another position (last but one)."""
    likeliest: Tensor
    """[T, N], int64: the tokens that most probably follow each position, the most probable first."""
    probabilities: Tensor
    """[T, N]: their probabilities."""


@torch.no_grad()
def explain(model: GPT, ids: Sequence[int], num_likeliest: int) -> Explanation:
    """Compute a text once, and return what the model did with it; in training it may have read texts otherwise."""
    device = next(model.parameters()).device
    with captured_attention(model) as layers:
        logits = model.head.logits(model(torch.tensor([list(ids)], device=device)))[0]
    probabilities, likeliest = logits.float().softmax(-1).topk(min(num_likeliest, logits.shape[-1]))
    return Explanation(torch.stack(layers).cpu(), likeliest.cpu(), probabilities.cpu())


@contextmanager
def captured_attention(model: GPT) -> Iterator[list[Tensor]]:
    """Yield a list to which each layer adds its weights [H, T, T] whenever a text, or a row of texts, is computed."""
    layers: list[Tensor] = []

    def capture(_: DotProduct, inputs: tuple[Any, ...]) -> None:
        q, k, _, mask, causal, examples = inputs
        if examples is not None:
            mask = _same_example(examples.lengths, len(q), q.device)
        layers.append(attention_weights(q, k, mask, causal)[0])

    hooks = [module.register_forward_pre_hook(capture) for module in model.modules() if isinstance(module, DotProduct)]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def _same_example(lengths: Sequence[int], num_rows: int, device: torch.device) -> Tensor:
    """Return bool [B, 1, T, T], True where two positions of a row belong to one of its examples."""
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device).view(num_rows, -1)
    return numbers[:, None, :, None] == numbers[:, None, None, :]


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return `softmax(QK^T / sqrt(W))` in float32, [B, H, T, S], which the fused kernels never have in memory.

    Args:
        q: Queries [B, H, T, W].
        k: Keys [B, K, S, W].
        mask: Where a position attends, as in `modules.attention.attention_mask`.
        causal: Each position attends to itself and those before it.
    """
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.float() @ keys.float().mT / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)
