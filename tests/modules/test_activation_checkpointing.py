"""What is computed again in the backward pass changes no bit of losses, gradients and later random numbers."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from varlen_on_cpu import varlen_on_cpu

from modules.activation_checkpointing import _keeping_products
from modules.attention import KeyValueCache
from modules.config_fields import ActivationCheckpointing
from modules.explanation import captured_attention
from modules.model import GPT, initialize
from modules.model_config import LoraConfig, ModelConfig

VOCAB, LENGTH = 64, 48
AGAIN: tuple[ActivationCheckpointing, ...] = ("blocks", "selective")
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2 dropout": {"dropout": 0.2},
    "llama": {"family": "llama", "num_kv_heads": 2, "query_key_norm": True},
    "llama dropout": {"family": "llama", "num_kv_heads": 2, "dropout": 0.2},
    "adapters": {"lora": LoraConfig(rank=4, dropout=0.2)},
}
INPUTS: dict[str, dict[str, Any]] = {
    "causal": {},
    "both sides": {"causal": False},
    "documents": {"document_ids": (torch.arange(LENGTH) // 20)[None]},
    "examples": {"lengths": [30, 10, 8]},
    "examples at once": {"lengths": [30, 10, 8]},
}


def built(mode: ActivationCheckpointing, **shape: Any) -> GPT:
    config = ModelConfig(num_layers=3, num_heads=4, hidden_dim=32, max_positions=LENGTH, **shape)
    model = GPT(config, VOCAB)
    initialize(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():  # also what begins at 0: biases, and B of an adapter
            parameter += 0.01 * torch.arange(parameter.numel()).cos().view_as(parameter)
    model.activation_checkpointing = mode
    return model


def ids(batch: int = 1) -> Tensor:
    return torch.randint(0, VOCAB, (batch, LENGTH), generator=torch.Generator().manual_seed(2))


def trained(model: GPT, precision: torch.dtype, **inputs: Any) -> list[Tensor]:
    """Return the loss, the gradients and the next random numbers."""
    torch.manual_seed(3)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = model.head(model(ids(), **inputs), ids())
    loss.backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [loss.detach(), torch.rand(4), *grads]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_are_the_same_bit_for_bit(shape: str, inputs: str, precision: torch.dtype) -> None:
    with varlen_on_cpu() if inputs == "examples at once" else nullcontext():
        expected, *others = (
            trained(built(mode, **SHAPES[shape]), precision, **INPUTS[inputs]) for mode in ("none", *AGAIN)
        )
    for mode, found in zip(AGAIN, others, strict=True):
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected)), mode


@pytest.mark.parametrize("lengths", [None, [LENGTH] * 8], ids=["rows", "examples at once"])
def test_what_is_kept_and_computed_is_in_the_order_of_the_modes(lengths: list[int] | None) -> None:
    kept, flops = [], []
    with varlen_on_cpu():
        for mode in ("none", "selective", "blocks"):
            model, tokens = built(mode), ids(8)
            with LiveBytes(model.parameters()) as live:
                loss = model.head(model(tokens, lengths=lengths), tokens)
                kept.append(live.now)
            loss.backward()
            with FlopCounterMode(display=False) as counter:
                model.head(model(tokens, lengths=lengths), tokens).backward()
            flops.append(counter.get_total_flops())
    assert kept[0] > 1.2 * kept[1] > 1.5 * kept[2]
    assert flops[0] == flops[1] < flops[2]


@pytest.mark.parametrize("mode", AGAIN)
def test_outside_of_training_nothing_is_kept_to_be_computed_again(mode: ActivationCheckpointing) -> None:
    plain, model = built("none").eval(), built(mode).eval()
    cache = KeyValueCache(model.config, 1, LENGTH)
    with torch.no_grad():
        assert torch.equal(model(ids(), cache=cache), plain(ids()))
    with captured_attention(model) as layers:
        model(ids()).sum().backward()
    assert len(layers) == model.config.num_layers  # each is seen once, though gradients are computed


def test_a_product_to_which_a_bias_is_added_in_place_is_given_with_it() -> None:
    x, weight, bias = torch.randn(6, 5), torch.randn(5, 4), torch.randn(4)
    forward, again = _keeping_products()
    with forward:
        kept = x @ weight
        kept.view(2, 3, 4).add_(bias)
    with again:
        product = x @ weight
        product.view(2, 3, 4).add_(bias)
    assert torch.equal(product, x @ weight + bias)


def test_a_product_that_was_changed_in_place_is_not_given() -> None:
    forward, again = _keeping_products()
    with forward:
        (torch.ones(6, 5) @ torch.ones(5, 4)).mul_(2)
    with again, pytest.raises(AssertionError, match="changed in place"):
        torch.ones(6, 5) @ torch.ones(5, 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_compiled_blocks_that_are_computed_again_give_the_same() -> None:
    compiled = built("blocks")
    compiled.compile(backend="aot_eager")
    expected = trained(built("none"), torch.float32)
    found = trained(compiled, torch.float32)
    assert all(torch.allclose(*pair, rtol=1e-3, atol=1e-5) for pair in zip(found, expected, strict=True))
