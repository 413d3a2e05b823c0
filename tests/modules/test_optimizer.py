"""Parameter groups, AdamW and the learning rate."""

import math

import pytest
import torch

from modules.config import OptimizerConfig
from modules.model import GPT, initialize
from modules.model_config import ModelConfig
from modules.optimizer import build_optimizer, parameter_groups
from modules.schedule import learning_rate

CONFIG = OptimizerConfig(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=10)
NUM_STEPS = 100


def rates(**changes: object) -> list[float]:
    config = OptimizerConfig(**{**CONFIG.model_dump(), **changes})
    return [learning_rate(config, step, NUM_STEPS) for step in range(NUM_STEPS + 5)]


def tiny_model() -> GPT:
    model = GPT(ModelConfig(num_layers=1, num_heads=2, hidden_dim=16, max_positions=8), 50)
    initialize(model, seed=1)
    return model


def test_warmup_is_linear_and_starts_above_zero() -> None:
    assert rates()[:10] == pytest.approx([0.1 * n for n in range(1, 11)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_last_step_and_those_after_it_have_the_lowest_rate(schedule: str) -> None:
    assert rates(schedule=schedule)[NUM_STEPS - 1 :] == pytest.approx([0.1] * 6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_rates_after_warmup_never_rise(schedule: str) -> None:
    after = rates(schedule=schedule)[9:]
    assert after == sorted(after, reverse=True)
    assert max(after) == 1.0


def test_cosine_and_linear_follow_their_formulas() -> None:
    # 90 steps decay, the first of them already below the highest rate
    assert rates()[54] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 45 / 90)) / 2)
    assert rates(schedule="linear")[54] == pytest.approx(0.1 + 0.9 * 0.5)


def test_wsd_is_constant_until_its_decay() -> None:
    found = rates(schedule="wsd", decay_fraction=0.2)
    assert set(found[10:80]) == {1.0}
    assert found[89] == pytest.approx(0.1 + 0.9 * 0.5)


def test_constant_never_falls() -> None:
    assert set(rates(schedule="constant")[10:]) == {1.0}


def test_a_run_shorter_than_its_warmup_still_warms_up() -> None:
    assert learning_rate(CONFIG, 4, 5) == pytest.approx(0.5)


def test_no_warmup_starts_at_the_highest_rate() -> None:
    assert rates(warmup_steps=0, schedule="constant")[0] == 1.0


def test_matrices_decay_and_the_rest_does_not() -> None:
    model = tiny_model()
    decayed, rest = parameter_groups(model, CONFIG)
    assert decayed["weight_decay"] == CONFIG.weight_decay
    assert rest["weight_decay"] == 0
    assert all(p.dim() == 2 for p in decayed["params"])
    assert all(p.dim() == 1 for p in rest["params"])


def test_every_parameter_is_in_one_group_once() -> None:
    model = tiny_model()
    grouped = [id(p) for group in parameter_groups(model, CONFIG) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_model()
    model.position_embedding.weight.requires_grad_(False)
    grouped = {id(p) for group in parameter_groups(model, CONFIG) for p in group["params"]}
    assert id(model.position_embedding.weight) not in grouped


def test_fused_step_is_the_formula_of_adamw() -> None:
    config = OptimizerConfig(learning_rate=0.1, min_learning_rate=0, weight_decay=0.5, betas=(0.9, 0.99))
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = build_optimizer([{"params": [weight], "weight_decay": 0.5}], config)
    exact, first, second = weight.detach().double(), torch.zeros(3).double(), torch.zeros(3).double()
    for step in range(1, 6):
        weight.grad = torch.tensor([0.5, -1.0, 0.1]) * step
        grad = weight.grad.double()
        optimizer.step()
        first, second = 0.9 * first + 0.1 * grad, 0.99 * second + 0.01 * grad**2
        update = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
        exact = exact * (1 - 0.1 * 0.5) - 0.1 * update
    torch.testing.assert_close(weight.detach().double(), exact, rtol=1e-6, atol=1e-6)
