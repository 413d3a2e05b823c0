"""A model prepared for its use: weights converted once and laid out for oneDNN, instead of at every product."""

import torch
from torch import Tensor, nn

from modules.layers import Linear
from modules.linear import linear, prepacked, prepacked_linear
from modules.model import GPT, OutputHead


def prepare_for_inference(model: GPT, dtype: torch.dtype | None = None, *, prepack: bool = False) -> None:
    """Replace a model's linear layers and its output head, in place; it can then be used, but not trained or saved.

    With a `dtype` the logits are those of autocast to it, bit for bit: linear layers and attention compute in it, norms
    and the residual stream keep theirs. The cache of keys and values then has that type, too.

    Args:
        model: In evaluation mode, unsharded. The memory of replaced weights is freed one by one.
        dtype: The type of the products, a floating-point type; None keeps that of the weights.
        prepack: Lay weights out for oneDNN's kernels where these are the fastest on this processor. This takes about
            as long as reading the weights four times, and equals the plain form within rounding.
    """
    score = model.score if model.config.classifier else None  # computed in float32, as under autocast
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear) and child is not score:
                assert child.adapter is None, f"{name} has an adapter, which must be merged before"
                module.add_module(name, PreparedLinear(child.weight, child.bias, dtype, prepack))
    if score is None:
        model.add_module("head", PreparedHead(model.head, dtype, prepack))


class PreparedLinear(nn.Module):
    """A linear layer of fixed weights, which computes in their type whatever that of its input."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None, prepack: bool) -> None:
        super().__init__()
        self.dtype = dtype or weight.dtype
        self.weight = weight.detach().to(self.dtype)
        self.bias = None if bias is None else bias.detach().to(self.dtype)
        packed = prepacked(self.weight) if prepack else None
        self.is_packed = packed is not None
        if packed is not None:
            self.weight = packed

    def forward(self, x: Tensor) -> Tensor:
        product = prepacked_linear if self.is_packed else linear
        return product(x.to(self.dtype), self.weight, self.bias)


class PreparedHead(nn.Module):
    """The output head of a prepared model; it gives logits, and no loss."""

    def __init__(self, head: OutputHead, dtype: torch.dtype | None, prepack: bool) -> None:
        super().__init__()
        self.product = PreparedLinear(head.weight, None, dtype, prepack)
        self.vocab_size = head.vocab_size

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab_size] of hidden states [..., D]."""
        return self.product(hidden)[..., : self.vocab_size]
