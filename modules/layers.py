"""Layers of the Transformer that both families are built of.

Shapes: B batch, T positions, D width, F width inside the feed-forward block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.gelu import gelu
from modules.linear import linear
from modules.model_config import ModelConfig
from modules.token_rows import TrainedRows, embedded


class Linear(nn.Linear):
    """nn.Linear with uninitialised weights; `initial_values` or a load provides all of them."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.adapter: nn.Module | None = None
        """What is added to the outputs; see `modules/lora.py`."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return self._adapted(x, linear(x, self.weight, self.bias))

    def _adapted(self, x: Tensor, out: Tensor) -> Tensor:
        return out if self.adapter is None else out + self.adapter(x)


class Embedding(TrainedRows, nn.Embedding):
    """nn.Embedding with uninitialised weights; `initial_values` or a load provides all of them."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__(num_rows, width)
        self.trained_rows = None

    def reset_parameters(self) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, as nn.Embedding names it
        x, own = super().forward(input), self.token_rows(input.device)
        return x if own is None else embedded(input, x, own)


class RMSNorm(nn.Module):
    """Division by the root mean square, computed in float32 (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.epsilon).to(x.dtype)


class GeluFeedForward(nn.Module):
    """Two linear layers with a GELU between them, in the tanh approximation of GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.hidden_dim, config.feed_forward_dim)
        self.down = Linear(config.feed_forward_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(x)))


class SwigluFeedForward(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202); gate and up are one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_dim, 2 * config.feed_forward_dim, bias=False)
        self.down = Linear(config.feed_forward_dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def norm(config: ModelConfig) -> nn.Module:
    """Return the family's norm over the width of the residual stream."""
    if config.family == "gpt2":
        return nn.LayerNorm(config.hidden_dim, eps=config.norm_epsilon)
    return RMSNorm(config.hidden_dim, config.norm_epsilon)


def feed_forward(config: ModelConfig) -> nn.Module:
    """Return the family's feed-forward block."""
    return GeluFeedForward(config) if config.family == "gpt2" else SwigluFeedForward(config)


def dropout(config: ModelConfig) -> nn.Module:
    """Return dropout of the residual stream, or nothing that would cost time."""
    return nn.Dropout(config.dropout) if config.dropout else nn.Identity()
