"""What a precision sets in torch."""

import pytest
import torch

from orchestrator.distributed.precision import float32_products
from orchestrator.errors import HardwareError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


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
