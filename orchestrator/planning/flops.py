"""Floating-point operations of training, product by product; a multiplication and an addition are two.

Attention counts all pairs of positions, also under a causal mask, as the published utilisations do (Chowdhery et al.
2022, arXiv 2204.02311, appendix B); its backward pass counts twice the forward one, as the formula asks, and not what
a fused kernel computes again.
"""

from dataclasses import dataclass

from modules.model_config import ModelConfig, padded_vocab_size
from orchestrator.planning.activations import Pass
from orchestrator.planning.weights import linear_layers, num_elements, weights


@dataclass(frozen=True)
class Flops:
    """Operations of a pass, or their mean for each of its tokens."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, factor: float) -> "Flops":
        return Flops(self.forward * factor, self.backward * factor)


def pass_flops(model: ModelConfig, vocab_size: int, of: Pass) -> Flops:
    """Return the operations of the matrix products of one forward and backward pass."""
    blocks = [_block_flops(model, of, is_first=layer == 0) for layer in (0, 1)]
    total = blocks[0] + blocks[1] * (model.num_layers - 1)
    return total + head_flops(model, vocab_size, of)


def six_n(model: ModelConfig, vocab_size: int) -> int:
    """Return the rule of thumb of operations a token: 6 for each parameter (Kaplan et al. 2020, arXiv 2001.08361).

    Parameters that are looked up and not multiplied are left out: positions, and a vocabulary that is not the head's.
    """
    looked_up = {"positions"} | (set() if model.tie_embeddings and model.classifier is None else {"vocabulary"})
    return 6 * num_elements(weight for weight in weights(model, vocab_size) if weight.part not in looked_up)


def _block_flops(model: ModelConfig, of: Pass, is_first: bool) -> Flops:
    inner = model.num_heads * model.width_per_head
    attention = 4.0 * of.num_tokens * of.length * inner
    total = Flops(attention, 2 * attention)
    for layer in linear_layers(model):
        forward = 2.0 * of.num_tokens * layer.num_inputs * layer.num_outputs
        if model.lora is None:
            total += Flops(forward, 2 * forward)
            continue
        # the input of the first frozen layer needs no gradient
        begins = is_first and layer.name == "attention.qkv" and not model.lora.trained_tokens
        total += Flops(forward, 0.0 if begins else forward)
        if rank := model.lora.rank * len(layer.adapted):
            down, up = (2.0 * of.num_tokens * rank * width for width in (layer.num_inputs, layer.num_outputs))
            total += Flops(down + up, (1 if begins else 2) * down + 2 * up)
    return total


def head_flops(model: ModelConfig, vocab_size: int, of: Pass) -> Flops:
    """Return the operations of the head; the gradients, which it computes in the forward pass, are counted backward."""
    if model.classifier is not None:
        return Flops()  # a product for each text, not for each token
    forward = 2.0 * of.head_tokens * padded_vocab_size(vocab_size) * model.hidden_dim
    return Flops(forward, forward if model.lora else 2 * forward)
