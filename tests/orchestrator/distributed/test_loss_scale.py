"""The loss scale of float16 continues where it was, under torch's scaler and under DeepSpeed's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from orchestrator.distributed.loss_scale import LossScale, read_loss_scale, restore_loss_scale

INTERVAL = 5


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)


def trainer(grad_scaler: Any = None, zero_scaler: Any = None) -> Any:
    optimizer = SimpleNamespace(loss_scaler=zero_scaler) if zero_scaler else SimpleNamespace()
    strategy = SimpleNamespace(model=SimpleNamespace(optimizer=optimizer))
    return SimpleNamespace(precision_plugin=SimpleNamespace(scaler=grad_scaler), strategy=strategy)


class Torch:
    """Lightning's float16: torch's GradScaler around an optimizer."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=INTERVAL)
        self.trainer = trainer(grad_scaler=self.scaler)
        self._weight = torch.nn.Parameter(torch.zeros(1))
        self._optimizer = torch.optim.SGD([self._weight], lr=0.0)

    def step(self, overflows: bool) -> float:
        self._weight.grad = torch.full((1,), float("inf") if overflows else 1.0)
        self.scaler.scale(torch.zeros(1))
        self.scaler.step(self._optimizer)
        self.scaler.update()
        return self.scaler.get_scale()


class DeepSpeed:
    """ZeRO's float16."""

    def __init__(self) -> None:
        self.scaler = DynamicLossScaler(
            init_scale=2.0**10, scale_window=INTERVAL, min_scale=1.0, delayed_shift=2, consecutive_hysteresis=False
        )
        self.trainer = trainer(zero_scaler=self.scaler)

    def step(self, overflows: bool) -> float:
        self.scaler.update_scale(overflows)
        return self.scaler.cur_scale


STEPS = [False] * 3 + [True] * 3 + [False] * 14 + [True] + [False] * 9


@pytest.mark.parametrize("kind", [Torch, DeepSpeed])
@pytest.mark.parametrize("at", [1, 4, 5, 6, 11, 20, 23])
def test_resumed_scale_changes_when_the_unbroken_one_does(kind: type[Torch | DeepSpeed], at: int) -> None:
    unbroken, resumed = kind(), kind()
    for overflows in STEPS[:at]:
        unbroken.step(overflows)
    state = read_loss_scale(unbroken.trainer)
    assert state is not None
    restore_loss_scale(resumed.trainer, state)
    assert read_loss_scale(resumed.trainer) == state
    assert [unbroken.step(overflows) for overflows in STEPS[at:]] == [
        resumed.step(overflows) for overflows in STEPS[at:]
    ]


@pytest.mark.parametrize(("saved", "continued"), [(Torch, DeepSpeed), (DeepSpeed, Torch)])
def test_scale_passes_between_strategies(saved: type, continued: type) -> None:
    before, after = saved(), continued()
    for overflows in STEPS[:8]:
        before.step(overflows)
    state = read_loss_scale(before.trainer)
    assert state is not None
    restore_loss_scale(after.trainer, state)
    assert read_loss_scale(after.trainer) == LossScale(
        state.scale, state.good_steps, 2 if continued is DeepSpeed else None
    )


def test_other_precisions_have_none() -> None:
    assert read_loss_scale(trainer()) is None
