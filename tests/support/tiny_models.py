"""Tiny models with random weights, of both families, whose texts are neither constant nor alike."""

import torch

from modules.model import GPT
from modules.model_config import ModelConfig

GPT2 = ModelConfig(num_layers=2, num_heads=2, hidden_dim=32, max_positions=40)
LLAMA = ModelConfig(
    family="llama",
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    hidden_dim=32,
    mlp_dim=48,
    max_positions=40,
    query_key_norm=True,
    tie_embeddings=False,
)
VOCAB = 60


def random_model(config: ModelConfig, vocab_size: int = VOCAB) -> GPT:
    """Return a model in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    model = GPT(config, vocab_size).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm.weight" in name))
    return model
