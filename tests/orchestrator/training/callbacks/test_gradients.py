"""The gradient is measured and clipped after the loss scale of float16 has been removed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from operations import Operations

from modules.muon import Muon
from orchestrator.distributed.strategy import guard_steps
from orchestrator.training.callbacks.gradients import ClipGradients

GRADIENT = torch.tensor([3.0, 4.0])


def clipped(
    scaler: torch.amp.GradScaler | None, admits: bool = True, on_device: bool = False
) -> tuple[float, torch.Tensor]:
    """Return the norm that was measured, and the weights after a step with the clipped gradient."""
    model: Any = torch.nn.Module()
    model.weight, model.last_metrics = torch.nn.Parameter(torch.zeros(2)), {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, eps=1.0, fused=True)
    trainer: Any = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler),
        strategy=SimpleNamespace(model=model, optimizers=[optimizer]),
    )
    guard_steps(trainer, lambda: torch.tensor(not admits), on_device)
    loss = (model.weight * GRADIENT).sum()
    (scaler.scale(loss) if scaler else loss).backward()
    callback = ClipGradients(1.0)
    callback.on_fit_start(trainer, model)
    callback.on_before_optimizer_step(trainer, model, optimizer)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return float(model.last_metrics["optimizer/grad_norm"]), model.weight.detach()


def test_a_scaled_gradient_is_measured_and_clipped_without_its_scale() -> None:
    norm, weights = clipped(torch.amp.GradScaler("cpu", init_scale=1024.0))
    expected_norm, expected_weights = clipped(None)
    assert norm == expected_norm == 5.0
    torch.testing.assert_close(weights, expected_weights)


def test_muons_part_is_measured_but_not_clipped() -> None:
    model: Any = torch.nn.ParameterDict({"matrix": torch.nn.Parameter(torch.zeros(1, 2)), "rest": torch.zeros(2)})
    model.last_metrics = {}
    groups = [{"params": [model["matrix"]], "muon": True, "momentum": 0.9}, {"params": [model["rest"]]}]
    trainer: Any = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=None),
        strategy=SimpleNamespace(model=model, optimizers=[Muon(groups)]),
    )
    model["matrix"].grad, model["rest"].grad = GRADIENT.clone().view(1, 2), 0.5 * GRADIENT
    callback = ClipGradients(1.0)
    callback.on_fit_start(trainer, model)
    callback.on_before_optimizer_step(trainer, model, trainer.strategy.optimizers[0])
    norm = float(model.last_metrics["optimizer/grad_norm"])
    assert norm == pytest.approx(5 * 1.25**0.5)
    assert torch.equal(model["matrix"].grad, GRADIENT.view(1, 2))
    torch.testing.assert_close(model["rest"].grad, 0.5 * GRADIENT / norm)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_step_that_is_not_admitted_moves_nothing_under_a_scaler_too(on_device: bool) -> None:
    assert not clipped(torch.amp.GradScaler("cpu"), admits=False, on_device=on_device)[1].any()
    assert not clipped(None, admits=False, on_device=on_device)[1].any()
    assert clipped(torch.amp.GradScaler("cpu"), on_device=on_device)[1].any()


@pytest.mark.parametrize("is_bad", [True, False])
def test_weights_on_another_device_than_the_verdict_wait_for_it(is_bad: bool) -> None:
    seen: list[Any] = []

    class Offloaded(torch.optim.SGD):  # as ZeRO's: gradients and verdict are on a GPU, its weights are not
        _step_supports_amp_scaling = True

        def step(self, closure: Any = None) -> None:
            seen.append(getattr(self, "found_inf", None))

    optimizer = Offloaded([torch.nn.Parameter(torch.zeros(2, device="meta"))])
    optimizer.param_groups.insert(0, {**optimizer.param_groups[0], "params": []})  # as ZeRO-3 leaves one
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=torch.nn.Module(), optimizers=[optimizer]))
    assert guard_steps(trainer, lambda: torch.tensor(is_bad), on_device=True) == []
    optimizer.step()
    assert seen == ([] if is_bad else [None])


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.1, 1.0, 100.0, float("inf"), float("nan")])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_norm_and_clipped_gradients_are_those_of_torch_bit_for_bit(scale: float, max_norm: float | None) -> None:
    shapes = [(3, 5), (7,), (2, 2)]
    generator = torch.Generator().manual_seed(1)
    gradients = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    model: Any = torch.nn.ParameterList([torch.zeros(shape) for shape in shapes])
    for weight, gradient in zip(model, gradients, strict=True):
        weight.grad = gradient.clone()
    model.last_metrics = {}
    optimizer = torch.optim.AdamW(model.parameters())
    trainer: Any = SimpleNamespace(precision_plugin=None, strategy=SimpleNamespace(optimizers=[optimizer]))
    callback = ClipGradients(max_norm)
    callback.on_fit_start(trainer, model)
    with Operations() as operations:
        callback.on_before_optimizer_step(trainer, model, optimizer)
    norm = torch.nn.utils.get_total_norm(gradients)
    others = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for weight, gradient in zip(others, gradients, strict=True):
        weight.grad = gradient
    torch.nn.utils.clip_grads_with_norm_(others, float("inf") if max_norm is None else max_norm, norm)
    assert torch.equal(model.last_metrics["optimizer/grad_norm"].nan_to_num(-1), norm.nan_to_num(-1))
    for weight, other in zip(model, others, strict=True):
        assert torch.equal(weight.grad.nan_to_num(-1), other.grad.nan_to_num(-1))
    assert ("aten::_foreach_mul_" in operations.counts) == (not norm <= 1 and (max_norm is not None or not norm < 1e30))
