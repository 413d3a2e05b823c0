"""Attention within examples on a GPU: by FlashAttention's kernel for lengths, and one by one where it does not suit."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from modules.attention import DotProduct
from modules.examples import Examples, has_varlen, suits_varlen
from modules.model import GPT, initialize
from modules.model_config import ModelConfig

pytestmark = pytest.mark.gpu
LENGTHS = [300, 1, 1, 64, 64, 594]
SHAPES = {"gpt2": {"family": "gpt2"}, "llama": {"family": "llama", "num_kv_heads": 2, "query_key_norm": True}}


def built(length: int = 1024, **shape: Any) -> GPT:
    config = ModelConfig(num_layers=2, num_heads=4, hidden_dim=256, max_positions=length, **shape)
    model = GPT(config, 512)
    initialize(model, seed=1)
    return model.cuda()


def attended(q: Tensor, k: Tensor, v: Tensor, causal: bool, lengths: list[int] | None) -> list[Tensor]:
    """Return attention and its gradients, all examples in one call or each in a call of its own."""
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    module, bounds = DotProduct(0.0), [0, *itertools.accumulate(LENGTHS)]
    if lengths is not None:
        out = module(*inputs, None, causal, Examples(lengths, q.device))
    else:
        pieces = [[x[:, :, start:stop] for x in inputs] for start, stop in itertools.pairwise(bounds)]
        out = torch.cat([module(*piece, None, causal) for piece in pieces], 2)
    out.float().square().sum().backward()
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize("num_kv_heads", [8, 2])
@pytest.mark.parametrize("width", [64, 128, 20])
def test_attention_and_gradients_are_those_of_each_example_alone(
    causal: bool, dtype: torch.dtype, tolerance: float, num_kv_heads: int, width: int
) -> None:
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, sum(LENGTHS), width, device="cuda", dtype=dtype)
        for heads in (8, num_kv_heads, num_kv_heads)
    )
    assert suits_varlen(q, k, v, 0.0) == (dtype != torch.float32 and width != 20)
    for found, expected in zip(attended(q, k, v, causal, LENGTHS), attended(q, k, v, causal, None), strict=True):
        assert (found - expected).abs().max() < tolerance * expected.abs().max()


def test_this_gpu_has_the_kernel() -> None:
    assert has_varlen(torch.device("cuda"))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_host_waits_for_nothing(shape: str) -> None:
    model, ids = built(**SHAPES[shape]), torch.randint(0, 512, (1, 1024), device="cuda")
    offsets = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32, device="cuda")
    for mode in ("default", "error"):  # tables of rotations are copied in the first pass
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with torch.autocast("cuda", torch.bfloat16):
                model(ids, lengths=LENGTHS, offsets=offsets).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_memory_grows_with_the_tokens_alone() -> None:
    def most(length: int) -> int:
        model, ids = built(length), torch.randint(0, 512, (1, length), device="cuda")
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            model(ids, lengths=[length // 2] * 2).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    assert most(32768) < 2.2 * most(16384)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_compiled_model_gives_the_same(shape: str) -> None:
    model, ids = built(**SHAPES[shape]), torch.randint(0, 512, (1, 1024), device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        expected = model(ids, lengths=LENGTHS)
        model.compile()
        assert (model(ids, lengths=LENGTHS) - expected).abs().max() < 3e-2 * expected.abs().max()
