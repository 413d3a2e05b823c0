"""Output head and cross entropy in one, chunk by chunk: the tokens x vocabulary logits never exist as a whole.

Shapes: N tokens, C tokens of a chunk, D width, V rows of the weight (the vocabulary and its padding).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# 2^25 logits are 128 MiB in float32: chunks this large multiply at full speed (measured on CPU from 512 rows on).
_CHUNK_ELEMENTS = 2**25
_MIN_CHUNK_ROWS = 256


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, chunk_size: int | None = None
) -> Tensor:
    """Mean of `-log softmax(hidden @ weight.T)[targets]`, with the memory of a few chunks of logits.

    The gradients are computed during the forward pass, so the backward pass never touches the weight: under ZeRO-3
    it exists only while the head runs forward. Matrices multiply in the autocast type if autocast is on, and the
    softmax and the sums over chunks are float32 at least.

    Args:
        hidden: [N, D].
        weight: [V, D]; rows from `vocab_size` on are padding and never get probability.
        targets: [N], int64, each below `vocab_size`.
        vocab_size: Rows of `weight` that stand for tokens.
        chunk_size: Rows of `hidden` at a time; None chooses by the size of the vocabulary.

    Returns:
        The mean loss in nats, float32 (float64 for float64 input), a scalar.

    Source: the chunking follows Apple's Cut Cross-Entropy, arXiv 2411.09009, and Liger Kernel, arXiv 2410.10989.
    """
    wants_grad = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(
        hidden,
        weight,
        targets,
        vocab_size,
        chunk_size or chunk_rows(weight.shape[0]),
        _compute_dtype(hidden),
        wants_grad and hidden.requires_grad,
        wants_grad and weight.requires_grad,
    )


@torch.no_grad()
def linear_cross_entropy_stats(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the losses in nats (float32) and number of targets that are the likeliest token (int64), scalars.

    Takes what `linear_cross_entropy` takes and computes no gradients.
    """
    rows = chunk_size or chunk_rows(weight.shape[0])
    dtype = _compute_dtype(hidden)
    sum_loss = torch.zeros((), dtype=_sum_dtype(dtype), device=hidden.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    for _, chunk_targets, _, log_probs in _chunks(hidden, weight, targets, vocab_size, rows, dtype):
        sum_loss -= log_probs.gather(1, chunk_targets[:, None]).sum()
        num_correct += (log_probs.argmax(-1) == chunk_targets).sum()
    return sum_loss, num_correct


def chunk_rows(num_columns: int) -> int:
    """Tokens of a chunk for a vocabulary of `num_columns`: a bounded number of logits, and enough rows to be fast."""
    return max(_MIN_CHUNK_ROWS, _CHUNK_ELEMENTS // num_columns)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, rows: int, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yields (rows, targets [C], logits [C, V], log probabilities [C, V]) in buffers that the next chunk overwrites.

    Fresh pages for every chunk cost four times the softmax itself on CPU (measured), hence the buffers.
    """
    num_tokens, num_columns = hidden.shape[0], weight.shape[0]
    num_chunks = -(-num_tokens // rows)
    rows = -(-num_tokens // num_chunks)
    logits_buffer = hidden.new_empty(rows, num_columns, dtype=dtype)
    log_probs_buffer = hidden.new_empty(rows, num_columns, dtype=_sum_dtype(dtype))
    with torch.autocast(hidden.device.type, enabled=False):
        columns = weight.to(dtype).t()
        for start in range(0, num_tokens, rows):
            chunk = slice(start, min(start + rows, num_tokens))
            count = chunk.stop - chunk.start
            logits, log_probs = logits_buffer[:count], log_probs_buffer[:count]
            torch.mm(hidden[chunk].to(dtype), columns, out=logits)
            logits[:, vocab_size:] = float("-inf")
            torch.log_softmax(logits, -1, dtype=log_probs.dtype, out=log_probs)
            yield chunk, targets[chunk], logits, log_probs


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        rows: int,
        dtype: torch.dtype,
        wants_hidden_grad: bool,
        wants_weight_grad: bool,
    ) -> Tensor:
        sum_dtype = _sum_dtype(dtype)
        sum_loss = torch.zeros((), dtype=sum_dtype, device=hidden.device)
        # Neither 1/N nor the loss scale enters before the end: half-precision gradients would lose small values.
        hidden_grad = torch.empty_like(hidden, dtype=dtype) if wants_hidden_grad else None
        weight_grad = torch.zeros_like(weight, dtype=sum_dtype) if wants_weight_grad else None
        for chunk, chunk_targets, logits, log_probs in _chunks(hidden, weight, targets, vocab_size, rows, dtype):
            index = chunk_targets[:, None]
            sum_loss -= log_probs.gather(1, index).sum()
            if not (wants_hidden_grad or wants_weight_grad):
                continue
            grad = log_probs.exp_()
            grad.scatter_add_(1, index, grad.new_full((), -1.0).expand(index.shape))
            grad = grad if dtype == sum_dtype else logits.copy_(grad)
            with torch.autocast(hidden.device.type, enabled=False):
                if hidden_grad is not None:
                    torch.mm(grad, weight.to(dtype), out=hidden_grad[chunk])
                if weight_grad is not None:
                    _add_product(weight_grad, grad.t(), hidden[chunk].to(dtype))
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.num_tokens, ctx.hidden_dtype, ctx.weight_dtype = hidden.shape[0], hidden.dtype, weight.dtype
        return sum_loss / hidden.shape[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = loss_grad / ctx.num_tokens
        if hidden_grad is not None:
            hidden_grad = (hidden_grad.to(scale.dtype) * scale).to(ctx.hidden_dtype)
        if weight_grad is not None:
            weight_grad = (weight_grad * scale).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
