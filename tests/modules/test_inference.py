"""Models prepared for generation beside plain ones."""

import weakref
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import modules.linear
from modules.attention import KeyValueCache
from modules.inference import PreparedLinear, prepare_for_inference
from modules.layers import Linear
from modules.model import GPT
from modules.model_config import ModelConfig

VOCAB = 130
SHAPE = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 96, "max_positions": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"family": "llama", "num_kv_heads": 2},
    "qwen2": {"family": "llama", "num_kv_heads": 1, "qkv_bias": True, "tie_embeddings": False},
    "qwen3": {"family": "llama", "num_kv_heads": 2, "query_key_norm": True, "head_dim": 32},
}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**{**SHAPE, **VARIANTS[request.param]}), VOCAB).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    return model


@pytest.fixture
def packs_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules.linear, "_SMALL_PRODUCT", 0)
    monkeypatch.setattr(modules.linear, "_onednn_is_faster", lambda: True)


@torch.no_grad()
def logits(model: GPT) -> Tensor:
    """Of a prompt, and of three tokens decoded one by one after it."""
    ids = torch.randint(0, VOCAB, (3, 20), generator=torch.Generator().manual_seed(2))
    cache = KeyValueCache(model.config, 3, 20)
    return torch.cat([model.head.logits(model(piece, cache=cache)) for piece in ids.split([17, 1, 1, 1], 1)], 1)


def prepared(model: GPT, dtype: torch.dtype | None, *, prepack: bool = False) -> GPT:
    model = deepcopy(model)
    prepare_for_inference(model, dtype, prepack=prepack)
    return model


def test_weights_converted_once_give_the_logits_of_autocast_bit_for_bit(model: GPT) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(model)
    found = logits(prepared(model, torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_without_a_type_the_logits_stay_as_they_are(model: GPT) -> None:
    assert torch.equal(logits(prepared(model, None)), logits(model))


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-4), (torch.bfloat16, 0.02)])
def test_packed_weights_give_the_same_logits_within_rounding(
    model: GPT, packs_everything: None, dtype: torch.dtype | None, tolerance: float
) -> None:
    packed = prepared(model, dtype, prepack=True)
    layers = [module for module in packed.modules() if isinstance(module, PreparedLinear)]
    assert len(layers) == 1 + 4 * 2
    can_pack = dtype is None or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not every processor can
    assert [layer.is_packed for layer in layers] == [can_pack] * len(layers)
    found, expected = logits(packed).float(), logits(prepared(model, dtype)).float()
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


def test_small_weights_are_not_packed(model: GPT) -> None:
    packed = prepared(model, None, prepack=True)
    assert not any(module.is_packed for module in packed.modules() if isinstance(module, PreparedLinear))


def test_the_memory_of_converted_weights_is_freed(model: GPT) -> None:
    replaced = [weakref.ref(module.weight) for module in model.modules() if isinstance(module, Linear)]
    prepare_for_inference(model, torch.bfloat16)
    assert [reference() for reference in replaced] == [None] * 4 * 2


def test_keys_and_values_are_stored_in_the_type_of_the_products(model: GPT) -> None:
    cache = KeyValueCache(model.config, 1, 8)
    with torch.no_grad():
        prepared(model, torch.bfloat16)(torch.tensor([[1, 2, 3]]), cache=cache)
    keys, values = cache.append(0, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert (keys.dtype, values.dtype) == (torch.bfloat16, torch.bfloat16)


class LargestNewTensor(TorchDispatchMode):
    """Elements of the largest tensor that an operation makes in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, operation: Any, types: Any, inputs: Any = (), options: Any = None) -> Any:
        result = operation(*inputs, **(options or {}))
        given = {each.untyped_storage().data_ptr() for each in inputs if isinstance(each, Tensor)}
        for each in result if isinstance(result, tuple) else [result]:
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, each.numel())
        return result


@pytest.mark.parametrize("form", ["plain", "autocast", "converted"])
@torch.no_grad()
def test_a_token_copies_neither_the_cache_nor_the_keys_of_grouped_heads(model: GPT, form: str) -> None:
    if form == "converted":
        prepare_for_inference(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast", cache_enabled=False):
        cache = KeyValueCache(model.config, 32, 60)
        model(torch.zeros(32, 58, dtype=torch.int64), cache=cache)
        with LargestNewTensor() as new:
            model(torch.zeros(32, 1, dtype=torch.int64), cache=cache)
    keys_of_a_layer = 32 * model.config.kv_heads * 58 * model.config.width_per_head
    assert new.numel < keys_of_a_layer
