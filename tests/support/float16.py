"""Lets workers without a GPU train float16, which Lightning would replace by bfloat16 and DeepSpeed refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def as_on_gpu(rank: int) -> Iterator[None]:
    """Train float16 on the CPU as it is trained on a GPU, slowly."""
    import torch
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from pytorch_lightning import Trainer
    from pytorch_lightning.plugins import DeepSpeedPrecision, MixedPrecision
    from pytorch_lightning.strategies import DeepSpeedStrategy

    def trainer(strategy: Any, precision: Any, **settings: Any) -> Trainer:
        of_zero = isinstance(strategy, DeepSpeedStrategy)
        plugin = DeepSpeedPrecision(precision) if of_zero else MixedPrecision(precision, "cpu")
        return Trainer(strategy=strategy, plugins=[plugin], **settings)

    with (
        patch("orchestrator.training.fit.Trainer", trainer),
        # 16-true only: DeepSpeed asks whether the device has float16 weights
        patch.object(CPU_Accelerator, "is_fp16_supported", lambda self: True),
        patch.object(CPU_Accelerator, "supported_dtypes", lambda self: [torch.float, torch.bfloat16, torch.half]),
    ):
        yield
