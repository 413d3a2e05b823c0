"""What a precision sets in torch, and what is said of processors that only emulate it."""

import pytest
import torch

from modules import processor
from orchestrator.distributed.precision import emulation_note, float32_products
from orchestrator.errors import HardwareError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
AVX512 = {"avx512_bf16": True, "amx_bf16": False, "avx2": True, "cpu_name": "some"}


def of_gpus() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32


def test_float32_is_exact_unless_tf32_is_asked_for_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    try:
        torch.set_float32_matmul_precision("high")  # as NVIDIA's containers do
        with float32_products(CPU, tf32=False):
            assert of_gpus() == ("highest", False)
            with float32_products(GPU, tf32=True):
                assert of_gpus() == ("high", True)
            assert of_gpus() == ("highest", False)
        assert of_gpus() == ("high", True)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_is_refused_where_the_gpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(HardwareError, match="this Tesla T4 has no TF32"), float32_products(GPU, tf32=True):
        pass
    assert of_gpus() == ("highest", False)


@pytest.mark.parametrize(("found", "names"), [(AVX512, ("AVX-512 BF16",)), ({"avx2": True}, ())])
def test_emulated_bfloat16_is_said_to_be_slow(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, object], names: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    processor.bfloat16_instructions.cache_clear()
    try:
        assert processor.bfloat16_instructions() == names
        for precision in ("bf16", "bf16-true"):
            note = emulation_note(precision, CPU)
            assert (note is None) == bool(names)
            assert note is None or note.startswith(f"training.precision={precision}: this processor has no")
        assert emulation_note("32", CPU) is emulation_note("bf16", GPU) is None
    finally:
        processor.bfloat16_instructions.cache_clear()
