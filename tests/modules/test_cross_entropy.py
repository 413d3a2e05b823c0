"""Linear cross entropy beside the plain computation."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from live_bytes import LiveBytes
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from modules.chunk_sizes import chunk_rows
from modules.cross_entropy import linear_cross_entropy, linear_cross_entropy_stats
from modules.model_config import padded_vocab_size
from modules.token_rows import TokenRows

NUM_TOKENS, WIDTH, VOCAB, ROWS = 37, 16, 50, 64


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(NUM_TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCAB, (NUM_TOKENS,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight[:VOCAB].t()).float(), targets)


def mean_loss(hidden: Tensor, weight: Tensor, targets: Tensor, *others: int | None) -> Tensor:
    return linear_cross_entropy(hidden, weight, targets, *others) / len(targets)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("chunk_size", [None, 1, 8, 37, 100])
def test_loss_and_gradients_equal_the_plain_computation(chunk_size: int | None) -> None:
    hidden, weight, targets = inputs()
    expected = plain(hidden, weight, targets)
    expected_grads = torch.autograd.grad(3 * expected, (hidden, weight))
    loss = mean_loss(hidden, weight, targets, VOCAB, chunk_size)
    grads = torch.autograd.grad(3 * loss, (hidden, weight))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(relative_error(g, e) < 1e-5 for g, e in zip(grads, expected_grads, strict=True))


# torch's own warnings
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), pytest.param(torch.bfloat16, 8e-3, marks=pytest.mark.long)]
)
def test_compiled_passes_give_the_same_from_one_chunk_of_logits(dtype: torch.dtype, tolerance: float) -> None:
    torch._dynamo.reset()
    results: list[list[Tensor]] = []

    def measure() -> None:
        for is_compiled in (False, True):
            hidden, weight, targets = inputs(dtype)
            rows = torch.full((2, WIDTH), 0.1, dtype=dtype, requires_grad=True)
            own = TokenRows(torch.tensor([3, 40]), rows)
            loss = linear_cross_entropy(hidden, weight, targets, VOCAB, 16, own, is_compiled)
            results.append([loss.detach(), *torch.autograd.grad(3 * loss, (hidden, weight, rows))])

    _, code = run_and_get_code(measure)
    assert len(code) == 1  # the last chunk, of 11 rows, is not compiled again
    made = re.findall(r"= empty_strided_cpu\((.*)", code[0])
    assert made
    assert not any(f", {ROWS})" in shape for shape in made)
    assert all(relative_error(*pair) < tolerance for pair in zip(*results, strict=True))


def test_gradients_equal_finite_differences_in_float64() -> None:
    hidden, weight, targets = inputs(torch.float64)
    loss = lambda hidden, weight: mean_loss(hidden, weight, targets, VOCAB, 8)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_padding_rows_get_no_probability_and_no_gradient() -> None:
    hidden, weight, targets = inputs()
    with torch.no_grad():
        weight[VOCAB:] = 1e4
    mean_loss(hidden, weight, targets, VOCAB).backward()
    assert weight.grad is not None
    assert not weight.grad[VOCAB:].any()
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 10


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_much_padding_is_not_computed(chunk_size: int | None) -> None:
    hidden, weight, targets = inputs()
    with torch.no_grad():
        weight[VOCAB:] = torch.nan
    mean_loss(hidden, weight, targets, VOCAB, chunk_size).backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert weight.grad is not None
    assert not weight.grad[VOCAB:].any()


def test_few_logits_take_no_more_memory_than_the_plain_computation() -> None:
    def most(loss_of: Callable[..., Tensor]) -> int:
        hidden, weight, targets = (
            torch.cat([each] * 20) if index != 1 else each for index, each in enumerate(inputs())
        )
        with LiveBytes([hidden, weight, targets]) as live:
            torch.autograd.grad(loss_of(hidden, weight, targets), (hidden, weight))
        return live.most

    copied = VOCAB * WIDTH * 4  # the rows of the tokens, which the backward pass needs without the weight
    assert most(lambda *tensors: mean_loss(*tensors, VOCAB)) <= most(plain) + copied + 64


@pytest.mark.parametrize("by_onednn", [False, True])
@pytest.mark.parametrize(("dtype", "bytes_of_a_logit"), [(torch.float32, 4), (torch.bfloat16, 2 + 4)])
def test_one_chunk_of_logits_is_held_at_a_time(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bytes_of_a_logit: int, by_onednn: bool
) -> None:
    is_float32 = dtype == torch.float32
    monkeypatch.setattr("modules.linear._suits_onednn", lambda *_: by_onednn and is_float32)
    width, num_columns, rows = 2, 4096, 32
    hidden, weight = (torch.randn(size, width, dtype=dtype, requires_grad=True) for size in (4 * rows, num_columns))
    targets = torch.randint(0, num_columns, (4 * rows,))
    with LiveBytes([hidden, weight, targets]) as live:
        linear_cross_entropy(hidden, weight, targets, num_columns, rows)
    chunk = rows * num_columns * bytes_of_a_logit
    assert chunk < live.most < 1.3 * chunk  # the rest are gradients and single columns


def test_without_gradients_chunks_are_those_of_what_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def rows_of_a_chunk(num_columns: int, device: str, is_compiled: bool = False) -> int:
        seen.append(is_compiled)
        return 16

    monkeypatch.setattr("modules.cross_entropy.chunk_rows", rows_of_a_chunk)
    monkeypatch.setattr("modules.cross_entropy.suits_plain", lambda *_: False)
    hidden, weight, targets = inputs()
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets, VOCAB, is_compiled=True)
    assert seen == [False]


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_changes_no_gradient_of_the_other(frozen: str) -> None:
    hidden, weight, targets = inputs()
    mean_loss(hidden, weight, targets, VOCAB).backward()
    expected = (weight if frozen == "hidden" else hidden).grad
    hidden, weight, targets = inputs()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    mean_loss(hidden, weight, targets, VOCAB).backward()
    found = (weight if frozen == "hidden" else hidden).grad
    assert expected is not None
    assert found is not None
    assert torch.equal(found, expected)


def test_loss_without_gradients_is_the_same() -> None:
    hidden, weight, targets = inputs()
    loss = mean_loss(hidden, weight, targets, VOCAB)
    with torch.no_grad():
        without = mean_loss(hidden, weight, targets, VOCAB)
    assert not without.requires_grad
    assert torch.equal(without, loss.detach())


def test_two_calls_add_their_gradients_up() -> None:
    hidden, weight, targets = inputs()
    (mean_loss(hidden, weight, targets, VOCAB) + mean_loss(hidden, weight, targets, VOCAB)).backward()
    twice = weight.grad
    hidden, weight, targets = inputs()
    mean_loss(hidden, weight, targets, VOCAB).backward()
    assert twice is not None
    assert weight.grad is not None
    assert torch.allclose(twice, 2 * weight.grad, rtol=1e-6, atol=0)


def test_backward_never_touches_the_weight() -> None:
    hidden, weight, targets = inputs()
    loss = mean_loss(hidden, weight, targets, VOCAB)
    expected = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    with torch.no_grad():
        weight.fill_(float("nan"))
    assert torch.equal(torch.autograd.grad(loss, weight)[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_half_precision_and_keeps_float32_gradients(dtype: torch.dtype) -> None:
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", dtype):
        loss = mean_loss(hidden, weight, targets, VOCAB, 8)
        expected = plain(hidden, weight, targets)
    grads = torch.autograd.grad(loss, (hidden, weight))
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    assert loss.dtype == grads[0].dtype == grads[1].dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    assert all(relative_error(g, e) < 1e-2 for g, e in zip(grads, expected_grads, strict=True))


def test_float16_gradients_survive_a_large_loss_scale_and_many_tokens() -> None:
    hidden, weight, targets = (torch.cat([t] * 200) if i != 1 else t for i, t in enumerate(inputs(torch.float16)))
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    scale = 2.0**16
    (scale * mean_loss(hidden, weight, targets, VOCAB, 64)).backward()
    exact_hidden, exact_weight = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    (scale * plain(exact_hidden, exact_weight, targets)).backward()
    for found, exact in ((hidden.grad, exact_hidden.grad), (weight.grad, exact_weight.grad)):
        assert found is not None
        assert exact is not None
        assert found.dtype == torch.float16
        assert relative_error(found, exact) < 5e-3


def test_statistics_are_the_sum_and_the_hits() -> None:
    hidden, weight, targets = inputs()
    logits = hidden @ weight[:VOCAB].t()
    sum_loss, num_correct = linear_cross_entropy_stats(hidden, weight, targets, VOCAB, 8)
    assert sum_loss.item() == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-6)
    assert int(num_correct) == int((logits.argmax(-1) == targets).sum())


def test_loss_of_an_impossible_token_is_exact_and_finite() -> None:
    hidden, weight = torch.ones(1, 1), torch.tensor([[200.0], [0.0]])
    loss = mean_loss(hidden, weight, torch.tensor([1]), 2)
    assert loss.item() == pytest.approx(200.0)


@pytest.mark.parametrize("num_columns", [128, 8192, 50304])
@pytest.mark.parametrize(
    ("device", "is_compiled", "bytes_of_a_logit", "most"),
    [("cpu", False, 4, 2**24), ("cpu", True, 4, 2**24), ("cuda", False, 2 + 4, 2**30), ("cuda", True, 2, 2**29)],
)
def test_chunks_hold_a_bounded_number_of_logits(
    num_columns: int, device: str, is_compiled: bool, bytes_of_a_logit: int, most: int
) -> None:
    rows = chunk_rows(num_columns, device, is_compiled)
    assert rows >= 512
    assert rows == 512 or rows * num_columns * bytes_of_a_logit <= most


def test_small_vocabularies_are_computed_in_one_chunk() -> None:
    assert chunk_rows(128, "cpu") >= 12 * 256


def test_no_targets_give_no_loss_and_gradients_of_zero() -> None:
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden[:0], weight, targets[:0], VOCAB)
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert loss.item() == 0
    assert [grad.abs().max().item() for grad in grads] == [0, 0]
    assert linear_cross_entropy_stats(hidden[:0], weight, targets[:0], VOCAB) == (0, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [50_257, 128_256])
def test_on_a_gpu_compiled_passes_give_the_same_in_less_memory(vocab_size: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(8192, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    rows = padded_vocab_size(vocab_size)
    weight = (0.02 * torch.randn(rows, 768, device="cuda", dtype=torch.bfloat16)).requires_grad_()
    targets = torch.randint(0, vocab_size, (8192,), device="cuda")
    results, peaks = [], []
    for is_compiled in (False, True):
        for _ in range(2):  # the first one compiles
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            loss = linear_cross_entropy(hidden, weight, targets, vocab_size, is_compiled=is_compiled)
            grads = torch.autograd.grad(loss, (hidden, weight))
        peaks.append(torch.cuda.max_memory_allocated() - before)
        results.append((loss.detach(), *grads))
    assert all(relative_error(*pair) < 1e-2 for pair in zip(*results, strict=True))
    assert peaks[1] < peaks[0]
