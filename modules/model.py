"""A Transformer of the GPT-2 family.

Shapes: B batch, T positions, S attended positions (T and those in the cache), D width, H heads, V vocabulary.
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
_BLOCK_ELEMENTS = 2**20


class Linear(nn.Linear):
    """nn.Linear with uninitialised weights; `initial_values` provides all of them."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class QueryKeyValue(Linear):
    """One linear map to queries, keys and values, whose keys' bias is never trained.

    That bias adds the same to all scores of a query, which the softmax takes away again, so its gradient is 0. As
    computed it would be rounding errors, of which AdamW makes whole steps, in each strategy others.
    """

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.bias.chunk(3)
        return linear(x, self.weight, torch.cat([query, key.detach(), value]))


class Embedding(nn.Embedding):
    """nn.Embedding with uninitialised weights; `initial_values` provides all of them."""

    def reset_parameters(self) -> None:
        pass


class KeyValueCache:
    """Keys and values of the positions computed so far, in memory that is allocated once."""

    def __init__(self, config: ModelConfig, batch_size: int, max_length: int, like: Tensor) -> None:
        shape = (config.num_layers, batch_size, config.num_heads, max_length, config.head_dim)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    @property
    def max_length(self) -> int:
        return self.keys.shape[3]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, H, T, D/H] of a layer after `length` positions and return all of that layer, [B, H, S, D/H]."""
        stop = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : stop] = keys
        self.values[layer, :, :, self.length : stop] = values
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]


class Attention(nn.Module):
    """Multi-head `softmax(QK^T / sqrt(d_k)) V` (Vaswani et al. 2017, section 3.2) by PyTorch's fused kernels."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.num_heads, self.dropout = layer, config.num_heads, config.dropout
        self.qkv = QueryKeyValue(config.hidden_dim, 3 * config.hidden_dim)
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
    """Two linear layers with a GELU between them, in the tanh approximation of GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.hidden_dim, config.feed_forward_dim)
        self.down = Linear(config.feed_forward_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward layers, each preceded by its norm and added to the residual stream."""

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
    """Map from hidden states to the loss or to logits. It owns its weight, so that ZeRO-3 gathers it for `forward`."""

    def __init__(self, weight: nn.Parameter, vocab_size: int) -> None:
        super().__init__()
        self.weight = weight
        self.vocab_size = vocab_size

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, *, statistics: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the summed loss in nats of [..., D] for targets [...]; `logits` and `statistics` are other uses."""
        if targets is None:
            return F.linear(hidden, self.weight)[..., : self.vocab_size]
        measure = linear_cross_entropy_stats if statistics else linear_cross_entropy
        return measure(hidden.flatten(0, -2), self.weight, targets.flatten(), self.vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab_size] of hidden states [..., D], all in memory at once: not for training."""
        return self(hidden)

    def statistics(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss in nats (float32) and the number of targets that are the most likely token (int64)."""
        return self(hidden, targets, statistics=True)


class GPT(nn.Module):
    """A Transformer with an output head. Its weights are uninitialised until `initialize` or a load sets them.

    Args:
        config: Shape of the Transformer.
        vocab_size: Number of tokens; the embedding rounds it up to a multiple of 64 rows.
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
        """Return the hidden states after the final norm.

        Args:
            input_ids: [B, T], int64.
            causal: Each position attends to itself and those before it; otherwise to all positions.
            document_ids: [B, S]; positions attend only to those with the same number.
            padding_mask: [B, T], bool, True for real tokens; no position attends to another that is padding.
            cache: Keys and values of earlier positions; those of `input_ids` are added to it. Only for causal
                attention without padding.

        Returns:
            [B, T, D]. Rows of padding hold meaningless numbers.
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
    """Return the number of embedding rows: the next multiple of 64, for which matrix kernels are fast."""
    return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def decayed_parameter_names(model: nn.Module) -> set[str]:
    """Return the names of the matrices, found by module type because under ZeRO-3 every local parameter is flat."""
    matrices = (nn.Linear, nn.Embedding, OutputHead)
    modules = model.named_modules()
    return {f"{name}.weight".removeprefix(".") for name, module in modules if isinstance(module, matrices)}


def initial_values(
    name: str, shape: tuple[int, ...], start: int, stop: int, seed: int, config: ModelConfig, vocab_size: int
) -> Tensor:
    """Return the initial weights of a parameter's flat range [start, stop); an element is the same in every range.

    Weights are normal with standard deviation 0.02, divided by sqrt(2 x num_layers) in layers that add to the residual
    stream. Biases are 0, norms 1, rows of vocabulary padding 0. Element i comes from number i of a counter-based
    generator (Philox, keyed by seed and name), so each rank computes only the range that it owns.

    Args:
        name: The parameter's name in `GPT.named_parameters()`.
        shape: The whole parameter's shape.
        start: First flat index.
        stop: Flat index after the last.
        seed: The run's seed.
        config: The model's shape.
        vocab_size: Number of tokens; embedding rows from this index on are padding.

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
    for indices, target in _blocks(start, stop):
        values[target] = _normal(f"{seed}:{name}", indices)
    values.mul_(std)
    if name in ("token_embedding.weight", "head.weight"):
        values[max(0, vocab_size * shape[1] - start) :] = 0
    return values


@torch.no_grad()
def initialize(model: GPT, seed: int) -> None:
    """Set every weight of an unsharded model on one device to its `initial_values`."""
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
    """Return bool [B or 1, 1, T, S], True where a position attends; None if `is_causal` or no mask is sufficient."""
    length = positions.shape[0]
    masks = []
    if document_ids is not None:
        masks.append(document_ids[:, None, past:, None] == document_ids[:, None, None, :])
    if padding_mask is not None:
        # Every position attends to itself; otherwise the softmax of a padding row would have nothing to sum over.
        eye = torch.eye(length, dtype=torch.bool, device=positions.device)
        masks.append(padding_mask[:, None, None, :] | eye)
    if causal and (masks or (past and length > 1)):
        attended = torch.arange(past + length, device=positions.device)
        masks.append((attended <= positions[:, None])[None, None])
    if not masks:
        return None
    return torch.stack(torch.broadcast_tensors(*masks)).all(0) if len(masks) > 1 else masks[0]


def _blocks(start: int, stop: int) -> Iterator[tuple[range, slice]]:
    """Yield ranges of bounded size that cover [start, stop), each with its slice of the result."""
    for first in range(start, stop, _BLOCK_ELEMENTS):
        end = min(first + _BLOCK_ELEMENTS, stop)
        yield range(first, end), slice(first - start, end - start)


def _normal(key: str, indices: range) -> Tensor:
    """Return the standard normal numbers at `indices` of the stream named by `key`, float32 [len(indices)].

    A Philox block holds eight 32-bit numbers. Each is turned into an odd multiple of 2^-24 in (-1, 1), which float32
    represents exactly, and the inverse of the normal distribution is applied to it.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    first = indices.start // 8
    generator = np.random.Philox(key=np.frombuffer(digest, dtype="<u8")).advance(first)
    words = generator.random_raw(-(-indices.stop // 8) * 4 - first * 4).astype("<u8", copy=False).view("<u4")
    words = words[indices.start - first * 8 : indices.stop - first * 8]
    signed = torch.from_numpy((words >> np.uint32(8)).astype(np.int32)) - 2**23
    return torch.erfinv(signed.float().add_(0.5).mul_(2.0**-23)).mul_(2**0.5)
