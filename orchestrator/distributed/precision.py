"""What each `training.precision` means to Lightning and to DeepSpeed, so that it is one computation for all strategies.

`bf16` and `16` are autocast: weights, their gradients and the sums over micro-batches and workers are float32, and
matrix products take half precision copies. `bf16-true` and `16-true` keep float32 weights for the optimizer alone.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from modules.config import Precision
from modules.processor import bfloat16_instructions
from orchestrator.errors import HardwareError

_LIGHTNING = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
    "bf16-true": "bf16-true",
    "16-true": "16-true",
}
_AUTOCAST_DTYPES = {"bf16": "bfloat16", "16": "float16"}


def lightning_precision(precision: Precision, zero_stage: int) -> str:
    """Return Lightning's name; under ZeRO Lightning itself converts nothing, since DeepSpeed's engine does."""
    return "32-true" if zero_stage and precision in _AUTOCAST_DTYPES else _LIGHTNING[precision]


def deepspeed_precision(precision: Precision) -> dict[str, Any]:
    """Return DeepSpeed's settings."""
    if precision in _AUTOCAST_DTYPES:
        # with DeepSpeed's own list of modules, gradients of their weights would be reduced in half precision
        settings = {"enabled": True, "dtype": _AUTOCAST_DTYPES[precision], "lower_precision_safe_modules": []}
        return {"torch_autocast": settings}
    return {"bf16": {"enabled": precision == "bf16-true"}, "fp16": {"enabled": precision == "16-true"}}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a model outside Lightning and DeepSpeed computes what they compute."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, getattr(torch, dtype)) if dtype else nullcontext()


@contextmanager
def float32_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """Multiply float32 matrices as TF32 if asked to, else exactly, whatever was set before.

    The environment may have set it: NVIDIA's containers do (`TORCH_ALLOW_TF32_CUBLAS_OVERRIDE`).

    Raises:
        HardwareError: the device has no TF32.
    """
    if tf32 and not (device.type == "cuda" and torch.cuda.is_tf32_supported()):
        raise HardwareError(
            f"training.tf32=true: this {_named(device)} has no TF32 (GPUs from Ampere on do); leave it out"
        )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def emulation_note(precision: Precision, device: torch.device) -> str | None:
    """Return what a user should know of bfloat16 on a processor that only emulates it; None on all others.

    Forward and backward of 4 blocks of 128 and a head of 8,192 tokens took 10.8 times as long as in float32 (AMD EPYC
    with AVX2, torch 2.13.0).
    """
    if device.type != "cpu" or not precision.startswith("bf16") or bfloat16_instructions():
        return None
    return (
        f"training.precision={precision}: this processor has no instructions for bfloat16 (AVX-512 BF16 or AMX) and "
        "emulates it; with AVX2 a step took eleven times as long as with training.precision=32"
    )


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
