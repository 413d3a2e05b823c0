"""The oneDNN linear map beside torch's own."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

import modules.linear
from modules.linear import linear, prepacked, prepacked_linear, product


@pytest.fixture(autouse=True, params=["onednn", "mkl", "both"])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take oneDNN's products, MKL's, or those of AMD's processors without AVX-512, as if all weights were large."""
    monkeypatch.setattr(modules.linear, "_onednn_is_faster", lambda: request.param == "onednn")
    monkeypatch.setattr(modules.linear, "_onednn_is_faster_for_large_weights", lambda: request.param == "both")
    monkeypatch.setattr(modules.linear, "_LARGE_WEIGHT", 0)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_autocast_computes_as_torch_does_with_gradients_in_the_weights_type(
    dtype: torch.dtype, with_bias: bool
) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(2, 5, 24, requires_grad=True), torch.randn(8, 24, requires_grad=True)]
    leaves += [torch.randn(8, requires_grad=True)] if with_bias else []
    with torch.autocast("cpu", dtype):
        found, expected = linear(*leaves, *([] if with_bias else [None])), F.linear(*leaves)
    assert torch.equal(found, expected)
    upstream = torch.randn(2, 5, 8).to(dtype)
    found_grads, expected_grads = (torch.autograd.grad(out, leaves, upstream) for out in (found, expected))
    for grad, expected_grad in zip(found_grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected_grad, rtol=2e-2, atol=2e-2)


def test_autocast_keeps_no_copy_of_the_weight_until_the_backward_pass() -> None:
    kept = []
    weight = torch.nn.Parameter(torch.randn(64, 48))
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        linear(torch.randn(4, 48), weight, None)
    of_its_size = [tensor for tensor in kept if tensor.numel() == weight.numel()]
    assert [tensor.data_ptr() for tensor in of_its_size] == [weight.data_ptr()]


def test_backward_reads_the_weight_that_the_parameter_then_has() -> None:
    weight = torch.nn.Parameter(torch.randn(6, 8))
    x = torch.randn(4, 8, requires_grad=True)
    out = linear(x, weight, None)
    gathered = weight.data
    weight.data = torch.empty(0)
    weight.data = gathered
    out.sum().backward()
    torch.testing.assert_close(x.grad, gathered.sum(0).expand(4, 8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 8])
@torch.no_grad()
def test_products_without_gradients_equal_torch_at_every_size(num_rows: int) -> None:
    for width in (16, 520, 700):
        x, weight, bias = torch.randn(num_rows, width), torch.randn(512, width), torch.randn(512)
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prepacked_weight_gives_the_product_of_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(modules.linear, "_onednn_is_faster", lambda: True)
    weight, bias = torch.randn(640, 520).to(dtype), torch.randn(640).to(dtype)
    packed = prepacked(weight)
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert packed is None  # such a processor cannot make the layout
        return
    assert packed is not None
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    for shape in ((520,), (1, 520), (3, 1, 520), (2, 300, 520)):
        x = torch.randn(shape).to(dtype)
        found, expected = prepacked_linear(x, packed, bias), F.linear(x, weight, bias)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("weight", "has_kernels"),
    [(torch.zeros(8, 8), True), (torch.zeros(640, 520), False), (torch.zeros(640, 520).double(), True)],
)
def test_what_onednn_does_not_make_faster_is_not_prepacked(
    monkeypatch: pytest.MonkeyPatch, weight: torch.Tensor, has_kernels: bool
) -> None:
    for name in ("_onednn_is_faster", "_onednn_is_faster_for_large_weights"):
        monkeypatch.setattr(modules.linear, name, lambda: has_kernels)
    assert prepacked(weight) is None


class TestAmdWithoutAvx512:
    """oneDNN multiplies by large weights as they lie, and MKL does all else, trainings too."""

    @pytest.fixture(autouse=True)
    def by_onednn(self, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        """Return what grows with each product of oneDNN."""
        found: list[bool] = []
        onednn = modules.linear._onednn
        monkeypatch.setattr(modules.linear, "_onednn", lambda *tensors: found.append(True) or onednn(*tensors))
        monkeypatch.setattr(modules.linear, "_onednn_is_faster", lambda: False)
        monkeypatch.setattr(modules.linear, "_onednn_is_faster_for_large_weights", lambda: True)
        monkeypatch.setattr(modules.linear, "_LARGE_WEIGHT", 2**18)
        return found

    @pytest.mark.parametrize(
        ("num_threads", "num_rows", "out_dim", "expected"),
        [(2, 1, 512, 1), (2, 40, 512, 1), (2, 40, 500, 0), (1, 1, 512, 0), (1, 31, 512, 0), (1, 40, 512, 1)],
    )
    def test_the_size_of_the_weight_decides_and_with_one_thread_the_rows(
        self, by_onednn: list[bool], threads: None, num_rows: int, out_dim: int, expected: int
    ) -> None:
        x, weight = torch.randn(num_rows, 512), torch.randn(out_dim, 512)
        with torch.no_grad():
            found = linear(x, weight, None), product(x, weight.t())
        assert len(by_onednn) == 2 * expected
        for each in found:
            torch.testing.assert_close(each, F.linear(x, weight), rtol=1e-5, atol=1e-4)

    def test_trainings_and_products_of_gradients_are_left_to_mkl(self, by_onednn: list[bool]) -> None:
        x, weight = torch.randn(40, 512), torch.randn(512, 512, requires_grad=True)
        out = linear(x, weight, None)
        assert torch.equal(out, F.linear(x, weight))
        out.sum().backward()
        with torch.no_grad():
            product(torch.randn(40, 512), weight)
        assert not by_onednn

    @pytest.mark.parametrize(("num_threads", "is_packed"), [(2, True), (1, False)])
    def test_weights_are_prepacked_for_several_threads(self, threads: None, is_packed: bool) -> None:
        assert (prepacked(torch.randn(640, 520)) is not None) == is_packed

    @pytest.fixture
    def threads(self, num_threads: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        yield
        torch.set_num_threads(before)
