"""The Transformer, in the GPT-2 family.

Shapes: B batch, T positions, S positions seen (T and those in the cache), D width, H heads, V vocabulary.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.config import ModelConfig
from modules.cross_entropy import linear_cross_entropy, linear_cross_entropy_stats
from modules.linear import linear

_INITIAL_STD = 0.02
_VOCAB_MULTIPLE = 64
_BLOCK = 2**20


class Linear(nn.Linear):
    """nn.Linear that leaves its weights as memory gave them: `initial_values` decides them all."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding that leaves its weights as memory gave them: `initial_values` decides them all."""

    def reset_parameters(self) -> None:
        pass


class KeyValueCache:
    """Keys and values of the positions computed so far, in memory taken once."""

    def __init__(self, config: ModelConfig, batch_size: int, max_length: int, like: Tensor) -> None:
        shape = (config.num_layers, batch_size, config.num_heads, max_length, config.head_dim)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    @property
    def max_length(self) -> int:
        return self.keys.shape[3]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores [B, H, T, D/H] of a layer after `length` positions and returns all of that layer, [B, H, S, D/H]."""
        stop = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : stop] = keys
        self.values[layer, :, :, self.length : stop] = values
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]


class Attention(nn.Module):
    """`softmax(QK^T / sqrt(d_k)) V` in several heads (Vaswani et al. 2017, section 3.2), by PyTorch's fused kernels."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.num_heads, self.dropout = layer, config.num_heads, config.dropout
        self.qkv = Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.projection = Linear(config.hidden_dim, config.hidden_dim)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, cache: KeyValueCache | None) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, T, D/H], a view
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.projection(out.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them, in GPT-2's tanh form."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.hidden_dim, config.feed_forward_dim)
        self.down = Linear(config.feed_forward_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward, each after its norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = _norm(config)
        self.mlp = FeedForward(config)
        self.dropout = _dropout(config)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, cache: KeyValueCache | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, causal, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class OutputHead(nn.Module):
    """Hidden states to the loss, or to logits. It holds its weight, so that ZeRO-3 gathers it for `forward`."""

    def __init__(self, weight: nn.Parameter, vocab_size: int) -> None:
        super().__init__()
        self.weight = weight
        self.vocab_size = vocab_size

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, *, statistics: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Summed loss in nats of [..., D] for targets [...]; see `logits` and `statistics` for the other two uses."""
        if targets is None:
            return F.linear(hidden, self.weight)[..., : self.vocab_size]
        measure = linear_cross_entropy_stats if statistics else linear_cross_entropy
        return measure(hidden.flatten(0, -2), self.weight, targets.flatten(), self.vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab_size] of hidden states [..., D]; the whole of them, so not for training."""
        return self(hidden)

    def statistics(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the losses in nats (float32) and number of targets that are the likeliest token (int64)."""
        return self(hidden, targets, statistics=True)


class GPT(nn.Module):
    """A Transformer with an output head. Its weights are whatever memory held until `initialize` or a load sets them.

    Args:
        config: The shape.
        vocab_size: Tokens; the embedding has rows for a multiple of 64.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        num_rows = padded_vocab_size(vocab_size)
        self.token_embedding = Embedding(num_rows, config.hidden_dim)
        self.position_embedding = Embedding(config.max_positions, config.hidden_dim)
        self.dropout = _dropout(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = _norm(config)
        tied: Any = self.token_embedding.weight
        weight = tied if config.tie_embeddings else nn.Parameter(torch.empty(num_rows, config.hidden_dim))
        self.head = OutputHead(weight, vocab_size)

    def forward(
        self,
        input_ids: Tensor,
        *,
        causal: bool = True,
        document_ids: Tensor | None = None,
        padding_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            input_ids: [B, T], int64.
            causal: Each position sees itself and those before it; otherwise all positions.
            document_ids: [B, T]; positions see only those with the same number.
            padding_mask: [B, T], bool, True for real tokens; nobody sees the others.
            cache: Positions computed before these, which are added to it. Only for causal attention without
                documents and padding.

        Returns:
            [B, T, D]. Rows of padding hold numbers without meaning.
        """
        length, past = input_ids.shape[1], cache.length if cache is not None else 0
        positions = torch.arange(past, past + length, device=input_ids.device)
        x = self.dropout(self.token_embedding(input_ids) + self.position_embedding(positions))
        mask = _attention_mask(positions, past, causal, document_ids, padding_mask)
        fused_causal = causal and mask is None and length > 1
        for block in self.blocks:
            x = block(x, mask, fused_causal, cache)
        if cache is not None:
            cache.length += length
        return self.final_norm(x)


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the embedding: the next multiple of 64, which matrix kernels are fast at."""
    return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def decayed_parameter_names(model: nn.Module) -> set[str]:
    """Names of the matrices, by the type of their module: under ZeRO-3 every local parameter is flat."""
    matrices = (nn.Linear, nn.Embedding, OutputHead)
    modules = model.named_modules()
    return {f"{name}.weight".removeprefix(".") for name, module in modules if isinstance(module, matrices)}


def initial_values(
    name: str, shape: tuple[int, ...], start: int, stop: int, seed: int, config: ModelConfig, vocab_size: int
) -> Tensor:
    """Initial weights of the flat range [start, stop) of a parameter: the same numbers in whatever ranges asked for.

    Normal with standard deviation 0.02, divided by sqrt(2 x num_layers) where a block adds to the residual stream;
    biases 0, norms 1, rows of vocabulary padding 0. Element i comes from number i of a counter-based generator
    (Philox, keyed by seed and name), so no rank needs more than the range that it owns.

    Args:
        name: The parameter's name in `GPT.named_parameters()`.
        shape: The whole parameter's shape.
        start: First flat index.
        stop: Flat index after the last.
        seed: The run's seed.
        config: The model's shape.
        vocab_size: Tokens; embedding rows from here on are padding.

    Returns:
        float32, [stop - start].

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
    """
    if name.endswith("norm.weight"):
        return torch.ones(stop - start)
    if name.endswith(".bias"):
        return torch.zeros(stop - start)
    is_residual = name.endswith(("attention.projection.weight", "mlp.down.weight"))
    std = _INITIAL_STD / (2 * config.num_layers) ** 0.5 if is_residual else _INITIAL_STD
    values = torch.empty(stop - start)
    for block, at in _aligned_blocks(start, stop):
        values[at] = _normal(f"{seed}:{name}", block)
    values.mul_(std)
    if name in ("token_embedding.weight", "head.weight"):
        values[max(0, vocab_size * shape[1] - start) :] = 0
    return values


@torch.no_grad()
def initialize(model: GPT, seed: int) -> None:
    """Sets every weight of a whole model on one device to its `initial_values`."""
    for name, parameter in model.named_parameters():
        values = initial_values(
            name, tuple(parameter.shape), 0, parameter.numel(), seed, model.config, model.vocab_size
        )
        parameter.copy_(values.view_as(parameter))


def _norm(config: ModelConfig) -> nn.Module:
    return nn.LayerNorm(config.hidden_dim, eps=config.norm_epsilon)


def _dropout(config: ModelConfig) -> nn.Module:
    return nn.Dropout(config.dropout) if config.dropout else nn.Identity()


def _attention_mask(
    positions: Tensor, past: int, causal: bool, document_ids: Tensor | None, padding_mask: Tensor | None
) -> Tensor | None:
    """Bool [B or 1, 1, T, S], True where a position sees another; None if the fused kernels know the mask by name."""
    length = positions.shape[0]
    masks = []
    if document_ids is not None:
        masks.append(document_ids[:, None, :, None] == document_ids[:, None, None, :])
    if padding_mask is not None:
        # Every position sees itself, or the softmax of a row of padding would have nothing to sum over.
        eye = torch.eye(length, dtype=torch.bool, device=positions.device)
        masks.append(padding_mask[:, None, None, :] | eye)
    if causal and (masks or (past and length > 1)):
        seen = torch.arange(past + length, device=positions.device)
        masks.append((seen <= positions[:, None])[None, None])
    if not masks:
        return None
    return torch.stack(torch.broadcast_tensors(*masks)).all(0) if len(masks) > 1 else masks[0]


def _aligned_blocks(start: int, stop: int) -> Iterator[tuple[range, slice]]:
    """Cuts [start, stop) into ranges of bounded size, with the place of each in the result."""
    for first in range(start, stop, _BLOCK):
        last = min(first + _BLOCK, stop)
        yield range(first, last), slice(first - start, last - start)


def _normal(key: str, indices: range) -> Tensor:
    """Standard normal numbers [len(indices)] of these places in the stream named by `key`, float32.

    Eight 32-bit numbers make a block of Philox. Each becomes an odd multiple of 2^-24 in (-1, 1), which float32
    holds exactly, and that the inverse of the normal distribution.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    first = indices.start // 8
    generator = np.random.Philox(key=np.frombuffer(digest, dtype="<u8")).advance(first)
    words = generator.random_raw(-(-indices.stop // 8) * 4 - first * 4).astype("<u8", copy=False).view("<u4")
    words = words[indices.start - first * 8 : indices.stop - first * 8]
    signed = torch.from_numpy((words >> np.uint32(8)).astype(np.int32)) - 2**23
    return torch.erfinv(signed.float().add_(0.5).mul_(2.0**-23)).mul_(2**0.5)
