"""Fused output head and cross entropy, in chunks: the tokens x vocabulary logits are never in memory as a whole.

Shapes: N tokens, C tokens in a chunk, D width, V rows of the weight (the vocabulary and its padding).
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from modules.chunk_sizes import FEW_LOGITS, chunk_rows
from modules.linear import product, takes_memory
from modules.token_rows import TokenRows

_MOST_PADDING = 1 / 16
"""Share of the weight's rows up to which padding is computed, too, because it makes the rows an even number."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    chunk_size: int | None = None,
    own: TokenRows | None = None,
    is_compiled: bool = False,
) -> Tensor:
    """Return the sum of `-log softmax(hidden @ weight.T)[targets]`, with the memory of a few chunks of logits.

    The gradients are computed in the forward pass, so the backward pass does not need the weight: under ZeRO-3 it is
    gathered only while the head runs forward. Matrix products use the autocast dtype if autocast is on; the softmax
    and the sums over chunks use float32 or higher precision.

    Args:
        hidden: [N, D].
        weight: [V, D]; rows from `vocab_size` on are padding and get probability 0.
        targets: [N], int64, each below `vocab_size`.
        vocab_size: Number of rows of `weight` that belong to tokens.
        chunk_size: Rows of `hidden` in a chunk; None chooses by the size of the vocabulary and the device.
        own: Rows that are taken instead of those in `weight`.
        is_compiled: Whether torch.compile makes what is computed of each chunk of logits; `torch.compile` as a whole
            would put all logits into memory.

    Returns:
        The summed loss in nats, float32 (float64 for float64 input), a scalar; 0 without targets.

    Source: the chunking follows Apple's Cut Cross-Entropy, arXiv 2411.09009, and Liger Kernel, arXiv 2410.10989.
    """
    if chunk_size is None and suits_plain(len(hidden), vocab_size, _compute_dtype(hidden)):
        return _plain_cross_entropy(hidden, weight, targets, vocab_size, own)
    if not torch.is_grad_enabled():
        return linear_cross_entropy_stats(hidden, weight, targets, vocab_size, chunk_size, own)[0]
    rows = chunk_size or chunk_rows(len(weight), weight.device.type, is_compiled)
    tokens, token_rows = (None, None) if own is None else own
    dtype = _compute_dtype(hidden)
    return _LinearCrossEntropy.apply(hidden, weight, token_rows, tokens, targets, vocab_size, rows, dtype, is_compiled)


@torch.no_grad()
def linear_cross_entropy_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    chunk_size: int | None = None,
    own: TokenRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the summed loss in nats (float32) and the number of targets that are the most likely token (int64).

    It takes the arguments of `linear_cross_entropy` and computes no gradients. Both results are scalars.
    """
    rows = chunk_size or chunk_rows(len(weight), weight.device.type)
    dtype = _compute_dtype(hidden)
    sum_loss = torch.zeros((), dtype=_sum_dtype(dtype), device=hidden.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        own = _converted(own, dtype)
        weight = _without_padding(weight, vocab_size)
        for chunk, _, log_probs in _chunks(hidden.to(dtype), weight.to(dtype), own, vocab_size, rows):
            index = targets[chunk, None]
            sum_loss -= log_probs.gather(1, index).sum()
            num_correct += (log_probs.argmax(-1, keepdim=True) == index).sum()
            del log_probs
    return sum_loss, num_correct


def suits_plain(num_tokens: int, vocab_size: int, dtype: torch.dtype) -> bool:
    """Return whether the logits are so few that chunks and gradients in the forward pass cost more than they save.

    Not in half precision, whose gradients are to be scaled in float32.
    """
    return num_tokens * vocab_size <= FEW_LOGITS and dtype in (torch.float32, torch.float64)


def _plain_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, own: TokenRows | None
) -> Tensor:
    # a copy, because the backward pass must not need the weight, which ZeRO-3 has let go; it is small
    rows = torch.slice_copy(weight, 0, 0, vocab_size)
    if own is not None:  # in one product, so that equal rows give equal bits
        rows = rows.index_copy(0, own.tokens, own.rows.to(rows.dtype))
    return F.cross_entropy(hidden @ rows.t(), targets, reduction="sum")


def _without_padding(weight: Tensor, vocab_size: int) -> Tensor:
    """Return the rows [vocab_size, D] of tokens alone, where the others would cost more than they gain.

    With 65 tokens in 128 rows the products took twice as long. A GPU multiplies quickly by multiples of 64 alone.
    """
    is_wasteful = len(weight) - vocab_size > _MOST_PADDING * len(weight)
    return weight[:vocab_size] if is_wasteful and weight.device.type == "cpu" else weight


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _converted(own: TokenRows | None, dtype: torch.dtype) -> TokenRows | None:
    return None if own is None else TokenRows(own.tokens, own.rows.detach().to(dtype))


def _chunks(
    hidden: Tensor, weight: Tensor, own: TokenRows | None, vocab_size: int, rows: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (rows, logits [C, V], log probabilities [C, V]); the next chunk overwrites both.

    On CPU the log probabilities of float32 logits take their place.
    """
    dtype, buffer = _sum_dtype(hidden.dtype), None
    for chunk, logits in _logits(hidden, weight, own, vocab_size, rows):
        if logits.dtype == dtype and logits.device.type == "cpu":
            log_probs = logits
        else:
            buffer = torch.empty_like(logits, dtype=dtype) if buffer is None else buffer
            log_probs = buffer[: len(logits)]
        yield chunk, logits, torch.log_softmax(logits, -1, dtype=dtype, out=log_probs)
        del logits, log_probs


def _logits(
    hidden: Tensor, weight: Tensor, own: TokenRows | None, vocab_size: int, rows: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, logits [C, V]), in chunks of equal size but the last; the next one overwrites the logits.

    They share one piece of memory, but for oneDNN's kernel, which takes none: on CPU fresh pages for every chunk cost
    four times the softmax itself (measured). Whoever has used a chunk lets go of it, so that no two are in memory.
    """
    if not len(hidden):
        return
    num_chunks = -(-len(hidden) // rows)
    rows = -(-len(hidden) // num_chunks)
    buffer = hidden.new_empty(rows, len(weight)) if takes_memory(hidden[:rows], weight.t()) else None
    for start in range(0, len(hidden), rows):
        chunk = slice(start, min(start + rows, len(hidden)))
        out = None if buffer is None else buffer[: chunk.stop - start]
        logits = product(hidden[chunk], weight.t(), out=out)
        if own is not None:
            logits[:, own.tokens] = product(hidden[chunk], own.rows.t())
        if vocab_size < len(weight):
            logits[:, vocab_size:] = float("-inf")
        yield chunk, logits
        del logits


Gradients = Iterator[tuple[slice, Tensor, Tensor]]
"""(rows, summed loss, its gradient by the logits [C, V]) of each chunk; the next one may overwrite the gradient."""


def _gradients(
    hidden: Tensor, weight: Tensor, own: TokenRows | None, targets: Tensor, vocab_size: int, rows: int
) -> Gradients:
    for chunk, logits, log_probs in _chunks(hidden, weight, own, vocab_size, rows):
        index = targets[chunk, None]
        loss = -log_probs.gather(1, index).sum()
        probs = log_probs.exp_()
        probs.scatter_add_(1, index, probs.new_full((), -1.0).expand(index.shape))
        yield chunk, loss, probs if probs.dtype == logits.dtype else logits.copy_(probs)
        del logits, log_probs, probs


def _compiled_gradients(
    hidden: Tensor, weight: Tensor, own: TokenRows | None, targets: Tensor, vocab_size: int, rows: int
) -> Gradients:
    measure = _compiled_measure()
    for chunk, logits in _logits(hidden, weight, own, vocab_size, rows):
        index = targets[chunk, None]
        for tensor in (logits, index):  # the last chunk is smaller, and so may be other batches
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        yield chunk, *measure(logits, index)
        del logits


@cache
def _compiled_measure() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_measure)


def _measure(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss of logits [C, V] for targets [C, 1], and its gradient, which takes the logits' place."""
    log_probs = torch.log_softmax(logits, -1, dtype=_sum_dtype(logits.dtype))
    is_target = torch.arange(logits.shape[1], device=logits.device) == index
    return -log_probs.gather(1, index).sum(), logits.copy_(log_probs.exp() - is_target.to(log_probs.dtype))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        token_rows: Tensor | None,
        tokens: Tensor | None,
        targets: Tensor,
        vocab_size: int,
        rows: int,
        dtype: torch.dtype,
        is_compiled: bool,
    ) -> Tensor:
        ctx.dtypes = [tensor.dtype if tensor is not None else None for tensor in (hidden, weight, token_rows)]
        own = None if tokens is None or token_rows is None else TokenRows(tokens, token_rows)
        with torch.autocast(hidden.device.type, enabled=False):
            loss, *grads = _loss_and_gradients(
                hidden.to(dtype),
                _without_padding(weight, vocab_size).to(dtype),
                _converted(own, dtype),
                targets,
                vocab_size,
                rows,
                is_compiled,
                *ctx.needs_input_grad[:2],
            )
        ctx.save_for_backward(*grads)
        ctx.num_padding = len(weight) - len(_without_padding(weight, vocab_size))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad, own_grad = (
            None if grad is None else (grad.to(loss_grad.dtype) * loss_grad).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        if weight_grad is not None and ctx.num_padding:
            weight_grad = F.pad(weight_grad, (0, 0, 0, ctx.num_padding))
        return hidden_grad, weight_grad, own_grad, None, None, None, None, None, None


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    own: TokenRows | None,
    targets: Tensor,
    vocab_size: int,
    rows: int,
    is_compiled: bool,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the summed loss and its gradients by `hidden`, `weight` and the rows in `own`.

    The gradients are scaled only in the backward pass: scaling here would lose small values in half precision.
    """
    sum_loss = torch.zeros((), dtype=_sum_dtype(hidden.dtype), device=hidden.device)
    is_whole = 0 < len(hidden) <= rows  # then the gradient of a chunk is that of all, and need not be copied
    hidden_grad = torch.empty_like(hidden) if wants_hidden and not is_whole else None
    weight_grad = weight.new_zeros(weight.shape) if wants_weight and not len(hidden) else None
    own_grad = None if own is None else own.rows.new_zeros(own.rows.shape, dtype=sum_loss.dtype)
    gradients = _compiled_gradients if is_compiled else _gradients
    for chunk, loss, grad in gradients(hidden, weight, own, targets, vocab_size, rows):
        sum_loss += loss
        if own is not None:
            outer = grad[:, own.tokens]
            own_grad = _add_product(own_grad, outer.t(), hidden[chunk])
            grad[:, own.tokens] = 0  # the rows in the weight are not used
        if wants_hidden:
            of_chunk = product(grad, weight)
            if own is not None:
                of_chunk += product(outer, own.rows)
            if hidden_grad is None:
                hidden_grad = of_chunk
            else:
                hidden_grad[chunk] = of_chunk
        if wants_weight:
            weight_grad = _add_product(weight_grad, grad.t(), hidden[chunk])
        del grad
    return sum_loss, hidden_grad, weight_grad, own_grad


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return `total + left @ right`, in place, in float32 or higher: half precision would round the sum over chunks."""
    dtype = _sum_dtype(left.dtype)
    if left.device.type == "cuda" and left.dtype != dtype:  # by a kernel that CPUs do not have; it rounds no product
        if total is None:
            return torch.mm(left, right, out_dtype=dtype)
        return torch.addmm(total, left, right, out_dtype=dtype, out=total)
    if total is None:
        return product(left, right).to(dtype)
    return total.addmm_(left, right) if dtype == left.dtype else total.add_(left @ right)
