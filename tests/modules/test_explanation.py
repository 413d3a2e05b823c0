"""Attention recomputed from queries and keys, beside the model itself and `transformers`."""

from typing import Any

import pytest
import torch
from published_models import KINDS, write_published

from modules.attention import Attention
from modules.explanation import captured_attention, explain
from modules.huggingface.folder import LocalFolder
from modules.huggingface.weights import load_huggingface
from modules.model import GPT

IDS = [5, 9, 5, 17, 250, 3, 40, 41, 42, 7]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Any]:
    """Return our model and that of `transformers`."""
    folder = tmp_path_factory.mktemp("models") / request.param
    peer = write_published(folder, request.param)
    return load_huggingface(LocalFolder(folder)).eval(), peer


def test_attention_is_that_of_transformers(pair: tuple[GPT, Any]) -> None:
    ours, peer = pair
    peer.set_attn_implementation("eager")
    with torch.no_grad():
        expected = torch.cat(peer(torch.tensor([IDS]), output_attentions=True).attentions)
    found = explain(ours, IDS, 3).attention
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5


def test_each_position_shares_out_its_whole_attention_among_those_up_to_it(pair: tuple[GPT, Any]) -> None:
    attention = explain(pair[0], IDS, 3).attention
    assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-6)
    assert attention.triu(1).abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
def test_values_that_are_mixed_by_it_are_the_output_of_the_layer(
    causal: bool, padding: int, pair: tuple[GPT, Any]
) -> None:
    values, outputs = [], []
    modules = [module for module in pair[0].modules() if isinstance(module, Attention)]
    hooks = [m.dot_product.register_forward_pre_hook(lambda _, inputs: values.append(inputs[2])) for m in modules]
    hooks += [m.register_forward_hook(lambda _, __, output: outputs.append(output)) for m in modules]
    mask = torch.tensor([[False] * padding + [True] * (len(IDS) - padding)]) if padding else None
    with captured_attention(pair[0]) as layers:
        pair[0](torch.tensor([IDS]), causal=causal, padding_mask=mask)
    for hook in hooks:
        hook.remove()
    assert len(layers) == len(modules)
    for module, weights, v, output in zip(modules, layers, values, outputs, strict=True):
        mixed = weights @ v[0].repeat_interleave(module.num_heads // module.num_kv_heads, dim=0)
        again = module.projection(mixed.transpose(0, 1).flatten(1))
        assert (again - output[0]).abs().max() <= 1e-5


@torch.no_grad()
def test_probabilities_are_those_of_the_next_token(pair: tuple[GPT, Any]) -> None:
    expected = pair[1](torch.tensor([IDS])).logits[0].softmax(-1).topk(4)
    found = explain(pair[0], IDS, 4)
    assert (found.probabilities - expected.values).abs().max() <= 1e-5
    assert found.likeliest.tolist() == expected.indices.tolist()


def test_a_model_is_as_before_afterwards(pair: tuple[GPT, Any]) -> None:
    with pytest.raises(IndexError):
        explain(pair[0], [10**6], 3)
    assert not [module for module in pair[0].modules() if module._forward_pre_hooks]


def test_a_single_token_looks_at_itself(pair: tuple[GPT, Any]) -> None:
    assert (explain(pair[0], IDS[:1], 3).attention == 1).all()
