"""Operations that are computed from a shape are those that torch counts while a model is trained."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modules.model import GPT, initialize
from modules.model_config import LoraConfig, ModelConfig
from orchestrator.planning.activations import Pass
from orchestrator.planning.flops import pass_flops, six_n

VOCAB = 256
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "llama": {"family": "llama", "num_kv_heads": 2, "query_key_norm": True},
    "wide heads": {"family": "llama", "num_kv_heads": 1, "head_dim": 32, "tie_embeddings": False},
}


def counted(config: ModelConfig, batch: int, length: int, head_tokens: int) -> tuple[int, int]:
    """Return the operations of a forward and of a backward pass, attention by its formula and not a fused kernel."""
    model = GPT(config, VOCAB)
    initialize(model, 1)
    model.double()  # for which the products are torch's own
    ids = torch.randint(0, VOCAB, (batch, length))
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            hidden = model(ids).flatten(0, 1)[:head_tokens]
            loss = model.head(hidden, ids.flatten()[:head_tokens])
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("are_few", [0, 2**20])
def test_operations_are_those_that_torch_counts(
    family: str, lora: LoraConfig | None, are_few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.cross_entropy.FEW_LOGITS", are_few)
    config = ModelConfig(num_heads=4, hidden_dim=64, mlp_dim=192, num_layers=3, lora=lora, **FAMILIES[family])
    for length, head_tokens in ((32, 64), (32, 10)):
        forward, backward = counted(config, 2, length, head_tokens)
        found = pass_flops(config, VOCAB, Pass(2 * length, length, head_tokens))
        # the head computes its gradients in its forward pass, but for few logits
        head_backward = (1 if lora else 2) * 2 * head_tokens * VOCAB * 64 if are_few == 0 else 0
        assert found.forward == forward - head_backward
        assert found.backward == backward + head_backward


def test_rule_of_thumb_leaves_out_what_is_looked_up() -> None:
    tied = ModelConfig(num_layers=1, num_heads=2, hidden_dim=32, max_positions=64)
    apart = tied.model_copy(update={"tie_embeddings": False})
    assert six_n(tied, VOCAB) == six_n(apart, VOCAB)
    assert six_n(tied, VOCAB) == six_n(tied.model_copy(update={"max_positions": 128}), VOCAB)
    assert six_n(tied, 2 * VOCAB) - six_n(tied, VOCAB) == 6 * VOCAB * 32
