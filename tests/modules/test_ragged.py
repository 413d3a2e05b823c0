"""Rows that hold examples of several lengths, beside each example alone."""

import copy
import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from tiny_models import GPT2, LLAMA, VOCAB, random_model
from torch import Tensor
from torch._dynamo.utils import counters
from varlen_on_cpu import KERNELS

from modules.attention import DotProduct, KeyValueCache
from modules.examples import Examples
from modules.explanation import captured_attention
from modules.model import GPT
from modules.model_config import ModelConfig

CONFIGS = {"gpt2": GPT2, "llama": LLAMA, "llama with biases": LLAMA.model_copy(update={"qkv_bias": True})}
MODELS = {name: random_model(config) for name, config in CONFIGS.items()}
ROWS = [
    [7, 1, 1, 5, 5, 12],
    [1],
    [40],
    *([random.Random(n).choice((1, 2, 3, 9, 16)) for _ in range(6)] for n in range(3)),
]
ROUNDING = 2e-6
"""Relative, of float32: 16 units in the last place; kernels differ in their order of sums (1.02e-6 without AVX-512)."""
both_families = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
both_directions = pytest.mark.parametrize("causal", [True, False])
both_kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def examples(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB, (1, length), generator=generator) for length in lengths]


def packed(model: GPT, parts: list[Tensor], causal: bool) -> Tensor:
    return model(torch.cat(parts, 1), causal=causal, lengths=[part.shape[1] for part in parts])


def single(model: GPT, parts: list[Tensor], causal: bool) -> Tensor:
    return torch.cat([model(part, causal=causal) for part in parts], 1)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@both_kernels
@both_families
@both_directions
@pytest.mark.parametrize("lengths", ROWS, ids=str)
def test_hidden_states_and_gradients_are_those_of_each_example_alone(
    model: GPT, causal: bool, lengths: list[int], kernel: Any
) -> None:
    parts = examples(lengths)
    results = []
    for compute in (packed, single):
        with kernel():
            hidden = compute(model, parts, causal)
        loss = (hidden * hidden.detach().roll(1, -1)).mean()
        results.append((hidden, torch.autograd.grad(loss, list(model.blocks.parameters()))))
    (hidden, gradients), (expected, expected_gradients) = results
    assert difference(hidden, expected) < ROUNDING
    scale = max(gradient.abs().max() for gradient in expected_gradients)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert (gradient - other).abs().max() / scale < ROUNDING


@both_families
@both_directions
@pytest.mark.parametrize("changed", range(4))
def test_a_changed_example_changes_no_other_by_a_bit(model: GPT, causal: bool, changed: int) -> None:
    lengths = [6, 6, 1, 9]
    before, others = examples(lengths), examples(lengths, seed=1)
    after = [others[n] if n == changed else part for n, part in enumerate(before)]
    rows = (packed(model, parts, causal).split(lengths, 1) for parts in (before, after))
    pairs = zip(*rows, strict=True)
    assert [torch.equal(one, other) for one, other in pairs] == [n != changed for n in range(len(lengths))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@both_families
@both_directions
def test_autocast_and_half_precision_are_those_of_each_example_alone(
    model: GPT, causal: bool, dtype: torch.dtype
) -> None:
    parts = examples(ROWS[0])
    with torch.autocast("cpu", dtype):
        assert difference(packed(model, parts, causal), single(model, parts, causal)) < 2e-2
    rounded = copy.deepcopy(model).to(dtype)
    assert packed(rounded, parts, causal).dtype == dtype
    assert difference(packed(rounded, parts, causal).float(), single(rounded, parts, causal).float()) < 2e-2


@pytest.mark.parametrize(("length", "is_rounded"), [(96, False), (512, True)])
def test_attention_of_short_bfloat16_examples_is_trained_in_float32(length: int, is_rounded: bool) -> None:
    q, k, v = torch.randn(3, 1, 2, length, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = DotProduct(0.0)(q.float(), k.float(), v.float(), None, True).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = DotProduct(0.0)(q.clone().requires_grad_(), k, v, None, True)
        in_two = DotProduct(0.0)(q.clone().requires_grad_(), k, v, None, True, Examples([length // 2] * 2, q.device))
    assert torch.equal(found, exact) != is_rounded
    assert found.dtype == in_two.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_dropout_acts_within_examples_in_training_only(config: ModelConfig) -> None:
    model = random_model(config.model_copy(update={"dropout": 0.5}))
    parts = examples(ROWS[0])
    assert torch.equal(packed(model, parts, True), packed(model, parts, True))
    torch.manual_seed(0)
    first = packed(model.train(), parts, True)
    torch.manual_seed(0)
    assert torch.equal(packed(model, parts, True), first)
    assert not torch.equal(packed(model, parts, True), first)


@torch.no_grad()
@both_families
@both_directions
def test_captured_attention_is_that_of_each_example_and_0_between_them(model: GPT, causal: bool) -> None:
    parts = examples(ROWS[0])
    with captured_attention(model) as layers:
        packed(model, parts, causal)
    with captured_attention(model) as alone:
        single(model, parts, causal)
    for layer, weights in enumerate(layers):
        of_examples = alone[layer :: len(layers)]
        expected = torch.stack([torch.block_diag(*heads) for heads in zip(*of_examples, strict=True)])
        assert (weights - expected).abs().max() < 1e-6


@both_kernels
@both_families
@both_directions
def test_rows_of_documents_are_those_of_a_mask(model: GPT, causal: bool, kernel: Any) -> None:
    lengths, ids = [3, 9, 12, 1, 6, 5], torch.cat(examples([36]), 1).view(3, 12)
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).view(3, 12)
    with kernel():
        found = model(ids, causal=causal, lengths=lengths, positions=torch.arange(12))
    assert difference(found, model(ids, causal=causal, document_ids=numbers)) < ROUNDING
    with kernel():  # and by default each begins at position 0
        found = model(ids, causal=causal, lengths=lengths)
    alone = [model(part, causal=causal)[0] for part in ids.view(1, -1).split(lengths, 1)]
    assert difference(found.flatten(0, 1), torch.cat(alone)) < ROUNDING


@both_kernels
def test_memory_grows_with_the_tokens_alone(kernel: Any) -> None:
    model = random_model(LLAMA.model_copy(update={"max_positions": 2048}))
    ids = torch.randint(0, VOCAB, (1, 2048))

    def most(number: int) -> int:
        with kernel(), LiveBytes([*model.parameters(), ids]) as live:
            model(ids[:, : 64 * number], lengths=[40, 24] * number).sum().backward()
        return live.most

    one, two, three = most(8), most(16), most(24)
    assert three - two == two - one > 0


# Dynamo instantiates autograd functions and looks at gradients of tensors that have none; torch's own warnings.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(each, id=name, marks=pytest.mark.long if each is nullcontext else ())
        for name, each in KERNELS.items()
    ],
)
def test_blocks_are_compiled_for_one_length_of_a_row_and_once_for_all_others(kernel: Any) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = random_model(LLAMA.model_copy(update={"num_layers": 1}))
    compiled = copy.deepcopy(model)
    # one kernel for all is within the graph of a block; what its backward pass is made of is tested with the other
    compiled.compile(**({"backend": "aot_eager"} if kernel is nullcontext else {"backend": "eager", "fullgraph": True}))
    num_graphs = []
    for lengths in ([5, 5, 9], [2], [1, 1, 7, 8, 12], [30, 4], [3, 3, 3]):
        with kernel():
            results = [packed(each, examples(lengths), True) for each in (compiled, model)]
        assert difference(*results) < 1e-6
        gradients = [
            torch.autograd.grad(hidden.square().mean(), list(each.blocks.parameters()))
            for hidden, each in zip(results, (compiled, model), strict=True)
        ]
        assert all(torch.allclose(*pair, rtol=1e-3, atol=1e-5) for pair in zip(*gradients, strict=True))
        num_graphs.append(counters["stats"]["unique_graphs"])
    assert num_graphs == [1, 2, 2, 2, 2] if kernel is not nullcontext else [2, 4, 4, 4, 4]


@pytest.mark.parametrize("lengths", [[3, 4], [3, 5, 1], [8, 0], []])
def test_lengths_that_do_not_divide_the_row_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not divide"):
        MODELS["gpt2"](torch.zeros(1, 8, dtype=torch.int64), lengths=lengths)


def test_lengths_go_with_no_other_way_of_masking() -> None:
    ids = torch.zeros(1, 8, dtype=torch.int64)
    cache = KeyValueCache(GPT2, 1, 8)
    for other in ({"document_ids": ids}, {"padding_mask": ids.bool()}, {"cache": cache}):
        with pytest.raises(ValueError, match="take no cache"):
            MODELS["gpt2"](ids, lengths=[8], **other)
    with pytest.raises(ValueError, match="do not divide"):
        MODELS["gpt2"](ids.expand(2, -1), lengths=[8])
