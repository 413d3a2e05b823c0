"""Losses that go wrong in chosen steps, planted in a worker of a `WorkerPool`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True)
class PlantedLoss:
    """Makes `loss * factor + offset` of the loss in `steps`, counted from 0, on `rank` (None: on all)."""

    steps: tuple[int, ...]
    factor: float = 1.0
    offset: float = 0.0
    rank: int | None = None

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        from modules import gpt_module

        original = gpt_module.GPTModule.training_step
        sum_of_losses = gpt_module.sum_of_losses

        def spoilt(losses: Any, weights: Any) -> Any:
            return sum_of_losses(losses, weights) * self.factor + self.offset

        def training_step(module: Any, batch: Any, index: int) -> Any:
            if module.step not in self.steps or self.rank not in (None, rank):
                return original(module, batch, index)
            with patch.object(gpt_module, "sum_of_losses", spoilt):
                return original(module, batch, index)

        with patch.object(gpt_module.GPTModule, "training_step", training_step):
            yield


@dataclass(frozen=True)
class Planted:
    """Several of them."""

    losses: tuple[PlantedLoss, ...]

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        with ExitStack() as stack:
            for loss in self.losses:
                stack.enter_context(loss(rank))
            yield
