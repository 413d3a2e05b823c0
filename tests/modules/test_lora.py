"""Adapters: what they compute, what of a model they train, and which names their layers have."""

import pytest
import torch
from tiny_models import GPT2, LLAMA, VOCAB
from torch import nn

from modules.config import OptimizerConfig
from modules.errors import InputError
from modules.initial_values import initial_values
from modules.lora import merge
from modules.model import GPT, initialize
from modules.model_config import LoraConfig, ModelConfig
from modules.optimizer import parameter_groups

BLOCK = "blocks.1."


def adapted(config: ModelConfig, *targets: str, **settings: float) -> GPT:
    """Return a model in training mode whose adapters add something that matters."""
    lora = LoraConfig(rank=3, alpha=6, target_layers=targets or ("all-linear",), **settings)
    model = GPT(config.model_copy(update={"lora": lora}), VOCAB)
    initialize(model, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_b"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def adapted_names(model: GPT) -> set[str]:
    return {name.removeprefix(BLOCK) for name, _ in model.named_parameters() if "adapter" in name and BLOCK in name}


@pytest.mark.parametrize(
    ("config", "targets", "expected"),
    [
        (GPT2, ["c_attn"], {"attention.qkv.adapter.c_attn"}),
        (GPT2, ["c_proj"], {"attention.projection.adapter.c_proj", "mlp.down.adapter.c_proj"}),
        (GPT2, ["mlp.c_proj", "c_fc"], {"mlp.down.adapter.c_proj", "mlp.up.adapter.c_fc"}),
        (LLAMA, ["q_proj", "v_proj"], {"attention.qkv.adapter.q_proj", "attention.qkv.adapter.v_proj"}),
        (LLAMA, ["o_proj", "up_proj"], {"attention.projection.adapter.o_proj", "mlp.gate_up.adapter.up_proj"}),
    ],
)
def test_layers_are_adapted_by_their_names_in_transformers(
    config: ModelConfig, targets: list[str], expected: set[str]
) -> None:
    assert adapted_names(adapted(config, *targets)) == {f"{name}_{end}" for name in expected for end in "ab"}


def test_all_linear_layers_of_the_blocks_are_adapted_at_once() -> None:
    names = [name.rpartition(".")[2] for name in adapted_names(adapted(LLAMA, "all-linear"))]
    known = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert sorted(names) == sorted(f"{name}_{end}" for name in known for end in "ab")


@pytest.mark.parametrize(("config", "known"), [(GPT2, "c_attn, c_proj, c_fc"), (LLAMA, "q_proj, k_proj, v_proj")])
@pytest.mark.parametrize("target", ["query_key_value", "proj", "", "lm_head"])
def test_an_unknown_name_is_refused_with_those_that_there_are(config: ModelConfig, known: str, target: str) -> None:
    with pytest.raises(InputError, match=f"target_layers={target}: .* there are {known}"):
        adapted(config, target)


@pytest.mark.parametrize(
    ("config", "targets"),
    [(GPT2, ["all-linear"]), (GPT2, ["c_attn"]), (LLAMA, ["all-linear"]), (LLAMA, ["q_proj", "v_proj", "gate_proj"])],
)
def test_an_adapted_model_computes_what_it_does_with_its_adapters_merged(
    config: ModelConfig, targets: list[str]
) -> None:
    model = adapted(config, *targets).double()
    plain, merged = GPT(config, VOCAB).double(), GPT(config, VOCAB).double()
    weights = dict(model.named_parameters())
    trained = {name: values.detach() for name, values in weights.items() if values.requires_grad}
    for other in (plain, merged):
        other.load_state_dict({name: weights[name] for name in other.state_dict() if name in weights}, strict=False)
    for name, parameter in merged.named_parameters():
        merge(config, name, parameter.detach(), trained, 2.0, ())
    ids = torch.arange(24).view(2, 12)
    found, unadapted, expected = (one.head.logits(one(ids)) for one in (model, plain, merged))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert (found - unadapted).abs().max() > 0.1


def test_merging_adds_to_the_rows_of_its_part_alone() -> None:
    weight, layer = torch.zeros(64, 32), "blocks.0.attention.qkv"
    trained = {f"{layer}.adapter.k_proj_a": torch.ones(2, 32), f"{layer}.adapter.k_proj_b": torch.ones(16, 2)}
    merge(LLAMA, f"{layer}.weight", weight, trained, 0.5, ())
    assert weight.sum(1).tolist() == [0] * 32 + [32] * 16 + [0] * 16


def test_dropout_takes_inputs_of_the_adapter_and_none_of_the_frozen_layer() -> None:
    model = adapted(GPT2, "c_attn", dropout=0.5)
    layer, x = model.blocks[0].attention.qkv, torch.randn(4, 32)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    torch.manual_seed(0)
    with_masks = layer(x)
    torch.manual_seed(0)
    inputs = nn.functional.dropout(x, 0.5)
    expected = plain + 2.0 * inputs @ layer.adapter.c_attn_a.t() @ layer.adapter.c_attn_b.t()
    torch.testing.assert_close(with_masks, expected)


def test_only_adapters_are_trained_and_as_matrices() -> None:
    model = adapted(LLAMA)
    model.head.statistics(model(torch.arange(8)[None]), torch.arange(8)[None])
    model.head(model(torch.arange(8)[None]), torch.arange(8)[None]).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, _ in model.named_parameters() if ".adapter." in name
    }
    (group,) = parameter_groups(model, OptimizerConfig())
    assert (len(group["params"]), group["weight_decay"]) == (2 * 2 * 7, 0.1)


def test_adapters_begin_as_those_of_peft() -> None:
    name, shape = "blocks.0.attention.qkv.adapter.q_proj_a", (16, 64)
    values = initial_values(name, shape, 0, 1024, 0, LLAMA, VOCAB)
    assert values.abs().max() < 1 / 8
    assert values.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)
    assert torch.equal(initial_values(name, shape, 100, 900, 0, LLAMA, VOCAB), values[100:900])
    assert not initial_values(name[:-1] + "b", (64, 16), 0, 1024, 0, LLAMA, VOCAB).any()


@pytest.mark.parametrize("autocast", [False, True])
def test_a_frozen_layer_keeps_no_input_for_the_backward_pass(autocast: bool) -> None:
    layer = GPT(GPT2, VOCAB).blocks[0].mlp.up.requires_grad_(False)
    kept = []
    x = torch.randn(64, 32, requires_grad=True)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", enabled=autocast):
        out = layer(x)
    out.float().sum().backward()
    assert x.grad is not None
    assert {tuple(sorted(shape)) for shape in kept} <= {tuple(sorted(layer.weight.shape))}  # torch keeps it transposed


TOKENS = (3, 41, 59)


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_trained_rows_compute_what_the_vocabulary_does_with_these_rows_in_it(config: ModelConfig) -> None:
    lora = LoraConfig(rank=1, trained_tokens=TOKENS)
    model = GPT(config.model_copy(update={"lora": lora}), VOCAB)
    initialize(model, seed=1)
    weights = {name: values.detach() for name, values in model.named_parameters()}
    for name, values in weights.items():
        if name.endswith("trained_rows"):
            values.normal_()
    plain = GPT(config, VOCAB)
    for name, values in plain.named_parameters():
        values.detach().copy_(weights[name])
        merge(config, name, values.detach(), weights, lora.scale, TOKENS)
    ids, targets = torch.randint(VOCAB, (2, 30)), torch.randint(VOCAB, (2, 30))
    ids[0, :3] = targets[0, 3:6] = torch.tensor(TOKENS)
    for one in (model, plain):
        one.zero_grad()
        one.head(one(ids), targets).backward()
    found, expected = (one.head.logits(one(ids)) for one in (model, plain))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.head(model(ids), targets), plain.head(plain(ids), targets))
    statistics = zip(
        model.head.statistics(model(ids), targets), plain.head.statistics(plain(ids), targets), strict=True
    )
    assert all(torch.allclose(*pair) for pair in statistics)
    named = dict(plain.named_parameters())
    for name, values in model.named_parameters():
        if name.endswith("trained_rows"):
            grad = named[name.replace("trained_rows", "weight")].grad
            torch.testing.assert_close(values.grad, grad[list(TOKENS)], rtol=1e-4, atol=1e-4)
