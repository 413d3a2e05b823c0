"""Linear layers where PyTorch's own are slow, in float32 on CPU, or take memory that must be free, under autocast.

PyTorch sends float32 products to MKL, which uses AVX-512 only on Intel processors: on two cores of an AMD EPYC with
AVX-512, oneDNN reached 410 GFLOPS and MKL 200, both in full precision (torch 2.13.0). On one with AVX2 alone, MKL is
faster by up to 1.6 times, except for `x @ weight.T` with a weight that is too large for the cache: that takes MKL 1.0
to 3.3 times as long with two threads and 1 to 128 rows, and 1.0 to 1.9 times with one thread and 32 rows or more.
A training as a whole gains nothing by it.
A call of oneDNN costs 10 microseconds however small it is, and one of MKL 2.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from modules.processor import is_amd

_SMALL_PRODUCT = 2**18
"""Multiplications below which MKL is faster than oneDNN, measured with 1 to 8 rows (torch 2.13.0)."""
_LARGE_WEIGHT, _MANY_ROWS = 2**20, 32
"""Numbers of a weight from which oneDNN is faster on AMD's processors without AVX-512; with one thread, only from so
many rows of the other factor on."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `torch.nn.functional.linear` by the fastest kernel for the device and dtype.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out] or None.

    Returns:
        [..., out].
    """
    if torch.compiler.is_compiling():
        return _traced(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return _AutocastLinear.apply(x, weight, bias, torch.get_autocast_dtype(x.device.type))
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _OneDnnLinear.apply(x, weight, bias)
    # decoding: an autograd function costs 6 microseconds a call, of which there are some hundred a token
    is_small = x.numel() * weight.shape[0] < _SMALL_PRODUCT
    return F.linear(x, weight, bias) if is_small else _onednn(x, weight, bias)


def _traced(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `linear` in a form for the compiler, which under autocast rounds the weight again in the backward pass.

    By itself it would keep the half-precision copies of all weights from the forward pass on (torch 2.13.0).
    """
    if torch.is_autocast_enabled(x.device.type):
        weight = checkpoint(weight.to, torch.get_autocast_dtype(x.device.type), use_reentrant=False)
    return torch.ops.aten.linear(x, weight, bias)  # `F.linear` is DeepSpeed's under ZeRO-3


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `left @ right` of [M, K] and [K, N] without gradients, by the fastest kernel for the device and dtype.

    Args:
        out: [M, N], memory for the result, which a kernel that cannot use it leaves alone.
    """
    return torch.mm(left, right, out=out) if takes_memory(left, right) else _onednn(left, right.t())


def takes_memory(left: Tensor, right: Tensor) -> bool:
    """Return whether the kernel of `product` can put the result into given memory."""
    return not _suits_onednn(left, right.t())


def prepacked(weight: Tensor) -> Tensor | None:
    """Return a copy of weight [out, in] in oneDNN's own layout for `prepacked_linear`; None if it would be no faster.

    The layout is the one that Inductor makes when it freezes a model, for any number of rows.
    """
    is_faster = {torch.float32: _prepacking_pays, torch.bfloat16: _onednn_has_bfloat16}.get(weight.dtype)
    if weight.device.type != "cpu" or is_faster is None or not is_faster() or weight.numel() < _SMALL_PRODUCT:
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def prepacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `linear` for a weight of `prepacked`, without gradients."""
    return _onednn(x, weight, bias)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN multiplies x [..., in] by weight [out, in], of any strides, faster than MKL."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (_onednn_is_faster() or _suits_onednn_without_avx512(x, weight))
        and not torch.is_autocast_enabled("cpu")
    )


def _suits_onednn_without_avx512(x: Tensor, weight: Tensor) -> bool:
    return (
        _onednn_is_faster_for_large_weights()
        and weight.numel() >= _LARGE_WEIGHT
        and weight.is_contiguous()  # the products that make gradients are faster by MKL
        and not torch.is_grad_enabled()
        and (torch.get_num_threads() > 1 or x.numel() >= _MANY_ROWS * x.shape[-1])
    )


@cache
def _onednn_is_faster() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


@cache
def _onednn_is_faster_for_large_weights() -> bool:
    return torch.backends.mkldnn.is_available() and is_amd()


def _prepacking_pays() -> bool:
    """Return whether it does in float32: without AVX-512, MKL multiplies a single row faster with one thread."""
    return _onednn_is_faster() or (_onednn_is_faster_for_large_weights() and torch.get_num_threads() > 1)


@cache
def _onednn_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias` by the kernel that Inductor calls; PyTorch has no public name for it."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _AutocastLinear(torch.autograd.Function):
    """The linear map in the autocast dtype; the weight keeps its own, and so do the gradients.

    Autocast's own keeps the half-precision copy of each weight for the backward pass: under ZeRO-3 those would be the
    whole model. DeepSpeed's replacement of it keeps none, but rounds once more when it adds the bias (0.19.8), so that
    ZeRO-3 would compute other numbers than the other strategies.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rounded = x.to(dtype)
        # the parameter itself, as below, and no input of a frozen one
        ctx.save_for_backward(rounded if ctx.needs_input_grad[1] else None, weight)
        ctx.dtype, ctx.x_dtype, ctx.bias_dtype = dtype, x.dtype, None if bias is None else bias.dtype
        with torch.autocast(x.device.type, enabled=False):
            # `F.linear` is DeepSpeed's under ZeRO-3
            return torch.ops.aten.linear(rounded, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        rows = out_grad.flatten(0, -2)
        return (
            (out_grad @ weight.to(ctx.dtype)).to(ctx.x_dtype) if wants_x else None,
            (rows.t() @ x.flatten(0, -2)).to(weight.dtype) if wants_weight else None,
            rows.sum(0, dtype=ctx.bias_dtype) if wants_bias else None,
            None,
        )


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Save the parameter itself, not a view: ZeRO-3 frees its memory and gathers it again for the backward pass.
        # The input is needed for the weight's gradient alone, so that of a frozen layer is let go.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = out_grad.flatten(0, -2)
        return (
            _onednn(out_grad, weight.t()) if wants_x else None,
            _weight_grad(x.flatten(0, -2), rows) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def _weight_grad(x: Tensor, out_grad: Tensor) -> Tensor:
    """Return `out_grad.T @ x`, [out, in]; oneDNN is up to 1.4 times as fast with the longer side last."""
    if x.shape[1] < out_grad.shape[1]:
        return _onednn(x.t(), out_grad.t()).t().contiguous()
    return _onednn(out_grad.t(), x.t())
