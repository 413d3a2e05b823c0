"""GELU by passes beside torch's own."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from operations import Operations
from torch import Tensor

from modules.gelu import gelu
from modules.layers import GeluFeedForward
from modules.model_config import ModelConfig

SPECIAL = (0.0, -0.0, 1e-38, -1e-38, 1.0, -3.0, 9.0, -9.0, 40.0, -40.0, 1e6, -1e6)


def _inputs() -> Tensor:
    x = 3 * torch.randn(700, 257, generator=torch.Generator().manual_seed(1))
    x[0, : len(SPECIAL)] = torch.tensor(SPECIAL)
    return x.requires_grad_()


def test_values_and_gradients_are_those_of_float64_within_rounding() -> None:
    x, upstream = _inputs(), torch.randn(700, 257, generator=torch.Generator().manual_seed(2))
    exact = x.detach().double().requires_grad_()
    expected = F.gelu(exact, approximate="tanh")
    (expected_grad,) = torch.autograd.grad(expected, exact, upstream.double())
    found = gelu(x)
    (grad,) = torch.autograd.grad(found, x, upstream)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-6, atol=1e-5)


def test_training_takes_one_exponential_and_none_in_the_backward_pass() -> None:
    layer = GeluFeedForward(ModelConfig(num_layers=1, num_heads=1, hidden_dim=64))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    forward, backward = Operations(), Operations()
    with forward:
        out = layer(torch.randn(256, 64)).sum()
    with backward:
        out.backward()
    assert forward.counts["aten::sigmoid_"] == 1
    slow = {"aten::sigmoid", "aten::sigmoid_", "aten::tanh", "aten::gelu", "aten::gelu_backward", "aten::exp"}
    assert slow.intersection({*forward.counts, *backward.counts}) == {"aten::sigmoid_"}


def test_it_keeps_input_and_output_alone() -> None:
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    x = _inputs()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = gelu(x)
    assert kept == {x.data_ptr(), out.data_ptr()}


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_stays_so(value: float) -> None:
    x = _inputs().detach()
    x[1, 1] = value
    x.requires_grad_()
    (grad,) = torch.autograd.grad(gelu(x).sum(), x)
    assert not grad[1, 1].isfinite()
    assert grad[2:].isfinite().all()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Numbers at the end of a thread's share are computed without vectors, so they may differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _inputs()
    whole = gelu(x)
    (whole_grad,) = torch.autograd.grad(whole.sum(), x)
    monkeypatch.setattr("modules.gelu.GELU_NUMBERS", 2**12)
    parts = gelu(x)
    (grad,) = torch.autograd.grad(parts.sum(), x)
    assert torch.equal(parts, whole)
    assert torch.equal(grad, whole_grad)
