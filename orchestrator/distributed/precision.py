"""What each `training.precision` means to Lightning and to DeepSpeed, so that it is one computation for all strategies.

`bf16` and `16` are autocast: weights, their gradients and the sums over micro-batches and workers are float32, and
matrix products take half precision copies. `bf16-true` and `16-true` keep float32 weights for the optimizer alone.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from modules.config import Precision

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
