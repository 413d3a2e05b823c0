"""What this machine's processor is, and what it computes by instructions of its own."""

import platform
from functools import cache
from pathlib import Path

_NAMES = {"avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}


@cache
def bfloat16_instructions() -> tuple[str, ...]:
    """Return the instructions that multiply bfloat16 matrices, by name; a processor without any emulates them."""
    import torch

    return tuple(_NAMES.get(name, name) for name, value in torch.cpu.get_capabilities().items() if _is_one(name, value))


@cache
def is_amd() -> bool:
    """Return whether AMD made this machine's processor."""
    described = Path("/proc/cpuinfo")  # of Linux, where Python names no maker
    return "AuthenticAMD" in (described.read_text() if described.exists() else platform.processor())


def _is_one(name: str, value: object) -> bool:
    return value is True and (name in _NAMES or name.endswith("bf16"))
