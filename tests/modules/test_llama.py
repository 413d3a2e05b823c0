"""Training the Llama family: gradients beside `transformers`, initial weights, decay and cost."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import write_published
from safetensors.torch import load_file

from modules.huggingface.export import save_huggingface
from modules.huggingface.folder import LocalFolder
from modules.huggingface.weights import load_huggingface
from modules.model import GPT, decayed_parameter_names, initialize
from modules.model_config import ModelConfig, RopeScaling
from orchestrator.training.callbacks.throughput import flops_per_token

VOCAB = 70
SHAPE: dict[str, Any] = {"family": "llama", "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 32}
SCALED = RopeScaling(kind="llama3", factor=8.0, original_max_positions=16)
VARIANTS = {
    "llama3": ModelConfig(**SHAPE, rope_scaling=SCALED),
    "qwen2": ModelConfig(**SHAPE, qkv_bias=True, tie_embeddings=False),
    "qwen3": ModelConfig(**SHAPE, query_key_norm=True, head_dim=16),
}


@pytest.mark.parametrize("kind", ["llama", "untied", "normed"])
def test_gradients_equal_transformers(tmp_path: Path, kind: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    peer = write_published(tmp_path / "model", kind)
    model = load_huggingface(LocalFolder(tmp_path / "model"))
    ids = torch.randint(0, model.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
    peer(ids, labels=ids).loss.backward()
    (model.head(model(ids[:, :-1]), ids[:, 1:]) / ids[:, 1:].numel()).backward()
    gradients = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    expected = {name: parameter.grad for name, parameter in peer.named_parameters()}
    save_huggingface(tmp_path, model.config, model.vocab_size, gradients)
    found = load_file(tmp_path / "model.safetensors")
    assert len(found) == len(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_initial_weights_are_those_of_gpt2_without_what_the_family_lacks(config: ModelConfig) -> None:
    model = GPT(config.model_copy(update={"hidden_dim": 128, "head_dim": 32}), VOCAB)
    initialize(model, seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter))
        elif name.endswith(".bias"):
            assert not parameter.any()
        else:
            std = 0.01 if name.endswith(("attention.projection.weight", "mlp.down.weight")) else 0.02
            assert parameter[:VOCAB].std().item() == pytest.approx(std, rel=0.06)


def test_matrices_alone_decay() -> None:
    model = GPT(VARIANTS["qwen3"].model_copy(update={"qkv_bias": True}), VOCAB)
    decayed = decayed_parameter_names(model)
    assert {name for name, parameter in model.named_parameters() if parameter.ndim == 2} == decayed - {"head.weight"}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_cost_of_a_token_counts_each_weight_of_a_product_and_the_attention(config: ModelConfig) -> None:
    model = GPT(config, 64)
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if parameter.ndim == 2)
    products = weights if config.tie_embeddings else weights - model.token_embedding.weight.numel()
    inner = config.num_heads * config.width_per_head
    assert flops_per_token(config, 64, 100) == 6 * products + 12 * config.num_layers * inner * 100


def test_a_family_takes_no_field_of_the_other() -> None:
    for name, value in {"head_dim": 16, "rope_theta": 5e5, "qkv_bias": True, "query_key_norm": True}.items():
        with pytest.raises(ValueError, match=f"{name} .*: the gpt2 family has none; set family=llama"):
            ModelConfig(**{name: value})
