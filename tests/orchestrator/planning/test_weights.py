"""Parameters that are counted from a shape alone are those of the built model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from modules.config import OptimizerConfig
from modules.model import GPT, decayed_parameter_names, initialize
from modules.model_config import ClassifierConfig, LoraConfig, ModelConfig
from modules.optimizer import build_optimizer, parameter_groups
from orchestrator.cli.command import conf_folder
from orchestrator.planning.weights import OptimizerName, by_part, num_elements, num_moments, optimizer_groups, weights

FILES = sorted((conf_folder() / "model").glob("*.yaml"))
CLASSIFIER = ClassifierConfig(labels=("a", "b", "c"))
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LoraConfig(rank=3)},
    "lora of some layers": {"lora": LoraConfig(rank=2, target_layers=("c_proj", "q_proj", "down_proj"))},
    "lora with tokens": {"lora": LoraConfig(rank=3, trained_tokens=(5, 7))},
    "classifier": {"classifier": CLASSIFIER},
    "classifier with lora": {"classifier": CLASSIFIER, "lora": LoraConfig(rank=3)},
}


def shape_of(file: Path, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))).model_copy(update=changes)


def built(config: ModelConfig, vocab_size: int) -> GPT:
    with torch.device("meta"):
        return GPT(config, vocab_size)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_model_of_conf_has_as_many_parameters_as_are_counted(file: Path) -> None:
    config = shape_of(file)
    model = built(config, 50257)
    assert num_elements(weights(config, 50257)) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["gpt2_124m", "qwen3_0p6b", "llama3_8b"])
def test_names_shapes_and_what_is_trained_are_those_of_the_built_model(name: str, variant: str) -> None:
    changes = dict(VARIANTS[variant])
    if variant == "lora of some layers":  # the names of one family
        known = ("c_proj",) if name == "gpt2_124m" else ("q_proj", "down_proj")
        changes["lora"] = LoraConfig(rank=2, target_layers=known)
    config = shape_of(conf_folder() / "model" / f"{name}.yaml", num_layers=2, **changes)
    model = built(config, 1000)
    decayed = decayed_parameter_names(model)
    found = [(weight.name, weight.shape, weight.is_trained, weight.is_matrix) for weight in weights(config, 1000)]
    assert found == [
        (name, tuple(parameter.shape), parameter.requires_grad, name in decayed)
        for name, parameter in model.named_parameters()
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_parts_and_groups_hold_every_parameter_once(optimizer: OptimizerName) -> None:
    found = weights(ModelConfig(), 1000)
    assert sum(by_part(found).values()) == num_elements(found)
    assert sorted(weight.name for group in optimizer_groups(found, optimizer) for weight in group) == sorted(
        weight.name for weight in found
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["gpt2_124m", "llama3_8b"])
def test_groups_and_moments_are_those_that_the_optimizer_has_after_a_step(name: str, optimizer: OptimizerName) -> None:
    shape = shape_of(conf_folder() / "model" / f"{name}.yaml", num_layers=2)
    small = shape.model_copy(update={"hidden_dim": 32, "num_heads": 2, "num_kv_heads": None, "mlp_dim": None})
    config = OptimizerConfig(name=optimizer)
    model = GPT(small, 100)
    initialize(model, seed=1)
    built_optimizer = build_optimizer(parameter_groups(model, config), config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    built_optimizer.step()
    found = weights(small, 100)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [[weight.name for weight in group] for group in optimizer_groups(found, optimizer)] == [
        [names[id(parameter)] for parameter in group["params"]] for group in built_optimizer.param_groups
    ]
    moments = [tensor for state in built_optimizer.state.values() for kind, tensor in state.items() if kind != "step"]
    assert num_moments(found, optimizer) == sum(moment.numel() for moment in moments)
