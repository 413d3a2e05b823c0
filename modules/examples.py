"""Examples, or documents, that lie one after another in rows of tokens, and attention within each of them.

Shapes: N tokens of all rows, E examples, H heads, K key and value heads, W width of a head.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

VARLEN_DTYPES = (torch.bfloat16, torch.float16)
"""Types of numbers that FlashAttention's kernel for lengths takes."""
_WIDEST_HEAD = 192
"""Width of a head up to which it has a backward pass on every GPU that it runs on."""
_WIDTH_MULTIPLE = 8
_FIRST_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs that it runs on, those of Ampere."""


class Examples:
    """Lengths of the examples that rows hold. It is no list, because a model is compiled anew for other lists.

    Args:
        lengths: Tokens of each example, in order, through all rows.
        device: Where the rows are.
        offsets: int32 [E + 1] there, the first token of each example, and N; None makes them, which takes a copy.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, offsets: Tensor | None = None) -> None:
        self.lengths = lengths
        self.runs = [(len(list(same)), length) for length, same in groupby(lengths)]
        """Number and length of neighbours of equal length."""
        self.longest = max(lengths)
        self.offsets = _offsets(lengths, device) if offsets is None else offsets
        self.has_varlen = has_varlen(device)
        """Whether the device has a kernel that takes all examples at once."""

    def positions(self) -> Tensor:
        """Return the position of each token in its example, int64 [N]."""
        total = sum(self.lengths)
        # of a given size, because otherwise the host would wait for the device
        starts = self.offsets[:-1].repeat_interleave(self.offsets.diff(), output_size=total)
        return torch.arange(total, device=self.offsets.device) - starts


def _offsets(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)


def has_varlen(device: torch.device) -> bool:
    """Return whether FlashAttention's kernel for lengths runs on a device; it needs no compiler."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY
    )


def suits_varlen(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> bool:
    """Return whether that kernel takes these queries, keys and values; it has no dropout, and no float32."""
    width = q.shape[-1]
    return (
        not dropout
        and q.dtype == k.dtype == v.dtype
        and q.dtype in VARLEN_DTYPES
        and width % _WIDTH_MULTIPLE == 0
        and width <= _WIDEST_HEAD
    )


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, causal: bool, examples: Examples) -> Tensor:
    """Return attention within each example, [N, H, W], with memory that grows with N alone, whatever the lengths.

    Args:
        q: Queries [N, H, W].
        k: Keys [N, K, W]; H / K neighbouring heads share them.
        v: Values [N, K, W].
        causal: Each position attends to itself and those before it; otherwise to all of its example.
        examples: Whose lengths sum up to N.
    """
    from torch.nn.attention.varlen import varlen_attn  # imports the compiler

    offsets, longest = examples.offsets, examples.longest
    window = (-1, 0 if causal else -1)
    is_grouped = q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, offsets, offsets, longest, longest, window_size=window, enable_gqa=is_grouped)
    assert isinstance(out, Tensor)
    return out
