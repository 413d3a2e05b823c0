"""Matrix products in float32 on CPU through oneDNN, which PyTorch itself uses only for half precision.

PyTorch sends float32 products to MKL, which holds back on processors that are not Intel's: on AMD EPYC (AVX-512)
oneDNN reached 410 GFLOPS and MKL 200 on two cores, at the same precision (torch 2.13.0).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, by the fastest kernel for device, type and size.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out] or None.

    Returns:
        [..., out].
    """
    if not suits_onednn(x):
        return F.linear(x, weight, bias)
    return _OneDnnLinear.apply(x, weight, bias)


def suits_onednn(x: Tensor) -> bool:
    """Whether products of a tensor [..., in] take the oneDNN kernels: float32 on CPU, outside autocast and compile."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for what `suits_onednn`, without a gradient. The kernel is the one that Inductor calls."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The parameter itself is kept, not a view: ZeRO-3 frees its memory and brings it back for the backward pass.
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = out_grad.flatten(0, -2)
        return (
            product(out_grad, weight.t()) if wants_x else None,
            product(rows.t(), x.flatten(0, -2).t()) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )
