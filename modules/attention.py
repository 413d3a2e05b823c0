"""Attention of both families, its masks, and the cache of keys and values.

Shapes: B batch, T positions, S attended positions (T and those in the cache), D width, H heads, K key and value heads,
W width of a head; N positions of rows that hold examples one after another, C examples of one length in them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.examples import Examples, attend_varlen, suits_varlen
from modules.layers import Linear, RMSNorm
from modules.linear import linear
from modules.model_config import ModelConfig
from modules.rotary import rotate

Rotations = tuple[Tensor, Tensor]
_LONG_IN_BFLOAT16 = 384
"""Positions from which attention in bfloat16 is trained in it."""


class KeyValueCache:
    """Keys and values of the positions computed so far, in memory that is allocated once, by the first of them."""

    def __init__(self, config: ModelConfig, batch_size: int, max_length: int) -> None:
        self._shape = (2, config.num_layers, batch_size, config.kv_heads, max_length, config.width_per_head)
        self._layers: list[tuple[Tensor, Tensor]] = []
        self.length = 0

    @property
    def max_length(self) -> int:
        return self._shape[4]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, K, T, W] of a layer after `length` positions and return all of that layer, [B, K, S, W]."""
        if not self._layers:
            self._allocate(keys)
        start, length = self.length, keys.shape[2]
        all_keys, all_values = self._layers[layer]
        all_keys.narrow(2, start, length).copy_(keys)
        all_values.narrow(2, start, length).copy_(values)
        return all_keys.narrow(2, 0, start + length), all_values.narrow(2, 0, start + length)

    def _allocate(self, like: Tensor) -> None:
        all_keys, all_values = like.new_empty(self._shape)
        self._layers = list(zip(all_keys, all_values, strict=True))

    def select(self, rows: Tensor, max_length: int) -> None:
        """Keep these rows, int64, in this order, with room for `max_length` positions; one may be kept several times.

        Memory is allocated anew only where the number of rows or the room changes.
        """
        before, self._shape = self._layers, (*self._shape[:2], len(rows), self._shape[3], max_length, self._shape[5])
        if before and before[0][0].shape != self._shape[2:]:
            self._allocate(before[0][0])
        for old, new in zip(before, self._layers, strict=True):
            for stored, kept in zip(old, new, strict=True):
                kept.narrow(2, 0, self.length).copy_(stored.narrow(2, 0, self.length)[rows])

    def write_rows(self, rows: Tensor, other: "KeyValueCache") -> None:
        """Put the rows of another cache, which is not longer, in place of the last positions of these rows."""
        start, stop = self.length - other.length, self.length
        for own, others in zip(self._layers, other._layers, strict=True):
            for stored, written in zip(own, others, strict=True):
                stored[rows, :, start:stop] = written[:, :, : other.length]

    def drop_first(self, number: int) -> None:
        """Forget the first positions of every row."""
        rest = self.length - number
        for stored in (part for layer in self._layers for part in layer):
            stored[:, :, :rest] = stored[:, :, number : self.length].clone()
        self.length = rest


class QueryKeyValue(Linear):
    """One linear map to queries, keys and values, whose keys' bias is never trained.

    Without rotary positions that bias adds the same to all scores of a query, which the softmax takes away again, so
    its gradient is 0. As computed it would be rounding errors, of which AdamW makes whole steps, in each strategy
    others.
    """

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.bias.chunk(3)
        return self._adapted(x, linear(x, self.weight, torch.cat([query, key.detach(), value])))


class DotProduct(nn.Module):
    """`softmax(QK^T / sqrt(W)) V` by PyTorch's fused kernels. It is a module, so that hooks see queries and keys."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self._uncompiled: Any = None

    def compile_around_examples(self) -> None:
        """Leave rows of examples out of what is compiled, because their lengths differ from row to row."""
        # no decorator, because it would import the compiler wherever this module is imported
        self._uncompiled = torch.compiler.disable(self._attend_examples)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, examples: Examples | None = None
    ) -> Tensor:
        """Return [B, H, T, W] for q [B, H, T, W], k and v [B, K, S, W]; H / K neighbouring heads share keys.

        With `examples`, each of them attends to itself alone. All are computed in one call of this module, because
        ZeRO-3 expects the same calls in each step.
        """
        if examples is not None:
            dropout = self.dropout if self.training else 0.0
            is_varlen = examples.has_varlen and suits_varlen(q, k, v, dropout)
            attend = attend_varlen if is_varlen else self._uncompiled or self._attend_examples
            out = attend(_joined(q), _joined(k), _joined(v), causal, examples)
            return out.view(q.transpose(1, 2).shape).transpose(1, 2)
        if _float32_is_faster(q, q.shape[2]):
            with torch.autocast("cpu", enabled=False):
                return self._attend(q.float(), k.float(), v.float(), mask, causal).to(q.dtype)
        return self._attend(q, k, v, mask, causal)

    def _attend_examples(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, examples: Examples) -> Tensor:
        """Return [N, H, W] for q [N, H, W], k and v [N, K, W], example by example."""
        if _float32_is_faster(q, len(q) / len(examples.lengths)):
            with torch.autocast("cpu", enabled=False):
                return self._attend_runs(q.float(), k.float(), v.float(), causal, examples.runs).to(q.dtype)
        return self._attend_runs(q, k, v, causal, examples.runs)

    def _attend_runs(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, runs: Sequence[tuple[int, int]]) -> Tensor:
        if len(runs) == 1:  # which need not be taken apart and put together
            return self._attend_run(runs[0], q, k, v, causal)
        sizes = [count * length for count, length in runs]
        pieces = zip(runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        return torch.cat([self._attend_run(*piece, causal) for piece in pieces])

    def _attend_run(self, run: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Return [C x T, H, W] for C neighbouring examples of T positions each, which are computed as a batch."""
        q, k, v = (x.view(*run, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        return self._attend(q, k, v, None, causal).transpose(1, 2).flatten(0, 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        batch, num_heads, length, width = q.shape
        if length == 1 and num_heads != k.shape[1]:  # the heads that share keys, as so many positions
            q = q.view(batch, k.shape[1], -1, width)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            return out.reshape(batch, num_heads, 1, width)  # some kernels put the positions before the heads
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=num_heads != k.shape[1]
        )


def _joined(heads: Tensor) -> Tensor:
    """Return the positions of all rows one after another, [N, H, W] of [B, H, T, W], without a copy."""
    return heads.transpose(1, 2).flatten(0, 1)


def _float32_is_faster(q: Tensor, length: float) -> bool:
    """Return whether to train the attention of bfloat16 queries in float32, by the (mean) length of the examples.

    On CPU its backward pass in bfloat16 takes 4 to 6 times as long as in float32 with 24 positions, 2.3 times with 128,
    and less from 512 on (torch 2.13.0 on an AMD EPYC with AVX-512).
    """
    in_training = q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16
    return in_training and length < _LONG_IN_BFLOAT16


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2), whose heads may share keys and values in groups."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.num_heads, self.num_kv_heads = layer, config.num_heads, config.kv_heads
        inner = config.num_heads * config.width_per_head
        is_gpt2 = config.family == "gpt2"
        kind = QueryKeyValue if is_gpt2 else Linear
        num_outputs = inner + 2 * config.kv_heads * config.width_per_head
        self.qkv = kind(config.hidden_dim, num_outputs, bias=is_gpt2 or config.qkv_bias)
        self.query_norm = self.key_norm = None
        if config.query_key_norm:
            self.query_norm = RMSNorm(config.width_per_head, config.norm_epsilon)
            self.key_norm = RMSNorm(config.width_per_head, config.norm_epsilon)
        self.dot_product = DotProduct(config.dropout)
        self.projection = Linear(inner, config.hidden_dim, bias=is_gpt2)

    def forward(
        self,
        x: Tensor,
        rotations: Rotations | None,
        mask: Tensor | None,
        causal: bool,
        cache: KeyValueCache | None,
        examples: Examples | None = None,
    ) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self._heads(x, rotations)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        out = self.dot_product(q, k, v, mask, causal, examples)
        return self.projection(out.transpose(1, 2).reshape(batch, length, -1))

    def _heads(self, x: Tensor, rotations: Rotations | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, H, T, W], keys and values [B, K, T, W]."""
        num_heads, num_kv_heads = self.num_heads, self.num_kv_heads
        heads = self.qkv(x).view(*x.shape[:2], num_heads + 2 * num_kv_heads, -1)
        if rotations is None and self.query_norm is None:  # split once, since the gradients of each split are copied
            q, k, v = heads.split_with_sizes([num_heads, num_kv_heads, num_kv_heads], 2)
            return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        qk, v = heads.split_with_sizes([num_heads + num_kv_heads, num_kv_heads], 2)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = qk.split_with_sizes([num_heads, num_kv_heads], 2)
            qk = torch.cat([self.query_norm(q), self.key_norm(k)], dim=2)
        if rotations is not None:
            qk = rotate(qk, rotations).to(v.dtype)
        q, k = qk.split_with_sizes([num_heads, num_kv_heads], 2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def attention_mask(
    length: int, past: int, causal: bool, document_ids: Tensor | None, padding_mask: Tensor | None, device: torch.device
) -> Tensor | None:
    """Return bool [B or 1, 1, T, S], True where a position attends; None if `is_causal` or no mask is sufficient."""
    attended = torch.arange(past + length, device=device)
    queries = attended[past:, None]
    masks = []
    if document_ids is not None:
        masks.append(document_ids[:, None, past:, None] == document_ids[:, None, None, :])
    if padding_mask is not None:
        # Every position attends to itself; otherwise the softmax of a padding row would have nothing to sum over.
        masks.append(padding_mask[:, None, None, :] | (attended == queries))
    if causal and length > 1 and (masks or past):
        masks.append((attended <= queries)[None, None])
    if not masks:
        return None
    return torch.stack(torch.broadcast_tensors(*masks)).all(0) if len(masks) > 1 else masks[0]
