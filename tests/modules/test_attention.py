"""What attention costs beside its products, counted, and what it takes from a kernel."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operations import Operations
from torch import Tensor

from modules.attention import Attention, DotProduct
from modules.model_config import ModelConfig


def test_gradients_of_queries_keys_and_values_are_brought_together_in_one_copy() -> None:
    attention = Attention(ModelConfig(num_layers=1, num_heads=4, hidden_dim=64), 0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    out = attention(torch.randn(2, 16, 64), None, None, True, None).sum()
    with Operations() as backward:
        out.backward()
    assert backward.counts["aten::cat"] == 2  # the other is of the bias's three gradients


def test_one_position_is_attended_whichever_way_the_kernel_lays_out_its_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(2, heads, length, 8) for heads, length in ((8, 1), (2, 5), (2, 5)))
    expected = DotProduct(0.0)(q, k, v, None, False)
    attend = F.scaled_dot_product_attention

    def positions_first(*inputs: Tensor, **kwargs: Any) -> Tensor:  # as kernels of GPUs do
        return attend(*inputs, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", positions_first)
    assert torch.equal(DotProduct(0.0)(q, k, v, None, False), expected)
