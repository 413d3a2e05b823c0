"""A plain CPU kernel behind `torch.nn.attention.varlen`, which has one for GPUs alone, written from its documentation.

Shapes: N tokens, E examples, H heads, K key and value heads, W width of a head.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from modules import examples


@contextmanager
def varlen_on_cpu() -> Iterator[None]:
    """Have the model take that kernel on CPU, for float32 as well, so that what it gives can be compared closely."""
    _register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "has_varlen", lambda device: True)
        patch.setattr(examples, "VARLEN_DTYPES", (torch.float32, torch.bfloat16, torch.float16))
        yield


@cache
def _register() -> None:
    from torch.nn.attention import varlen

    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)


def _segments(offsets: Tensor, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield each example's part of tensors [N, ..., W], in float64 and with the heads first."""
    for start, stop in pairwise(offsets.tolist()):
        yield [tensor[start:stop].double().transpose(0, 1) for tensor in tensors]


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    scores = q @ k.repeat_interleave(len(q) // len(k), 0).mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf) if causal else scores


def _check(q: Tensor, offsets: Tensor, longest: int, causal: bool, scale: Any, window: Any) -> None:
    assert offsets.dtype == torch.int32
    assert offsets[0] == 0
    assert offsets[-1] == len(q)
    assert offsets.diff().max() <= longest
    assert scale is None
    assert list(window) == [-1, 0 if causal else -1]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    *others: None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(query, cu_seq_q, max_q, is_causal, scale, window_size)
    assert enable_gqa or query.shape[1] == key.shape[1]
    out, sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    with torch.autocast("cpu", enabled=False):
        starts = cu_seq_q.tolist()
        for start, (q, k, v) in zip(starts, _segments(cu_seq_q, query, key, value), strict=False):
            scores = _scores(q, k, is_causal)
            attended = scores.softmax(-1) @ v.repeat_interleave(len(q) // len(v), 0)
            out[start : start + q.shape[1]] = attended.transpose(0, 1)
            sums[:, start : start + q.shape[1]] = scores.logsumexp(-1)
    return out, sums, torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(query, cu_seq_q, max_q, is_causal, scale, window_size)
    found = [torch.empty_like(tensor) for tensor in (query, key, value)]
    shared = query.shape[1] // key.shape[1]
    bounds = list(pairwise(cu_seq_q.tolist()))
    pieces = _segments(cu_seq_q, grad_out, query, key, value, out)
    with torch.autocast("cpu", enabled=False):
        for (start, stop), (grad, q, k, v, attended) in zip(bounds, pieces, strict=True):
            weights = (_scores(q, k, is_causal) - lse[:, start:stop, None]).exp()
            inner = grad @ v.repeat_interleave(shared, 0).mT - (grad * attended).sum(-1, keepdim=True)
            scores = weights * inner / math.sqrt(q.shape[-1])
            of_q = scores @ k.repeat_interleave(shared, 0)
            of_k, of_v = (part.unflatten(0, (-1, shared)).sum(1) for part in (scores.mT @ q, weights.mT @ grad))
            for one, part in zip(found, (of_q, of_k, of_v), strict=True):
                one[start:stop] = part.transpose(0, 1)
    return found[0], found[1], found[2]


KERNELS = {"one by one": nullcontext, "all at once": varlen_on_cpu}
"""Both ways of computing attention within examples."""
