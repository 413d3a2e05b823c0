"""What attention costs beside its products, counted."""

import torch
from operations import Operations

from modules.attention import Attention
from modules.model_config import ModelConfig


def test_gradients_of_queries_keys_and_values_are_brought_together_in_one_copy() -> None:
    attention = Attention(ModelConfig(num_layers=1, num_heads=4, hidden_dim=64), 0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    out = attention(torch.randn(2, 16, 64), None, None, True, None).sum()
    with Operations() as backward:
        out.backward()
    assert backward.counts["aten::cat"] == 2  # the other is of the bias's three gradients
