"""The oneDNN linear map beside torch's own."""

import pytest
import torch
import torch.nn.functional as F

import modules.linear
from modules.linear import linear, product


@pytest.fixture(autouse=True, params=["onednn", "mkl"])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules.linear, "_onednn_is_faster", lambda: request.param == "onednn")


@pytest.mark.parametrize(("in_dim", "out_dim"), [(24, 8), (8, 24), (16, 16)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_and_its_gradients_equal_torch(in_dim: int, out_dim: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, in_dim, requires_grad=True)
    weight = torch.randn(out_dim, in_dim, requires_grad=True)
    bias = torch.randn(out_dim, requires_grad=True) if with_bias else None
    leaves = [x, weight] + ([bias] if bias is not None else [])
    upstream = torch.randn(3, 5, out_dim)
    found, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grads, expected_grads = (
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
    )
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-5)
        assert grad.is_contiguous()


def test_product_equals_matmul() -> None:
    left, right = torch.randn(7, 5), torch.randn(5, 11)
    torch.testing.assert_close(product(left, right), left @ right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(right.t(), left.t()), (left @ right).t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_take_torch_own_kernels(dtype: torch.dtype) -> None:
    x, weight = torch.randn(4, 8, dtype=dtype), torch.randn(6, 8, dtype=dtype)
    assert torch.equal(linear(x, weight, None), F.linear(x, weight))


def test_autocast_decides_the_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(4, 8), torch.randn(6, 8), None).dtype == torch.bfloat16


def test_backward_reads_the_weight_that_the_parameter_then_has() -> None:
    weight = torch.nn.Parameter(torch.randn(6, 8))
    x = torch.randn(4, 8, requires_grad=True)
    out = linear(x, weight, None)
    gathered = weight.data
    weight.data = torch.empty(0)
    weight.data = gathered
    out.sum().backward()
    torch.testing.assert_close(x.grad, gathered.sum(0).expand(4, 8), rtol=1e-5, atol=1e-5)
