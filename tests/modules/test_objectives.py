"""Losses on batches, and phases."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from modules.config import ModelConfig, ObjectiveConfig, PhaseConfig
from modules.model import GPT, initialize
from modules.objectives import (
    causal_loss,
    causal_statistics,
    masked_loss,
    masked_statistics,
    objective_weights,
    phase_ends,
    phase_of_step,
)

VOCAB, BATCH, LENGTH, CHOSEN = 50, 3, 12, 4
CLM, MLM, BOTH = {"clm": 1.0}, {"mlm": 1.0}, {"clm": 0.5, "mlm": 0.5}


@pytest.fixture
def model() -> GPT:
    model = GPT(ModelConfig(num_layers=2, num_heads=2, hidden_dim=16, max_positions=LENGTH), VOCAB)
    initialize(model, seed=1)
    return model


@pytest.fixture
def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (BATCH, LENGTH + 1), generator=generator)
    positions = torch.stack([torch.randperm(LENGTH, generator=generator)[:CHOSEN] for _ in range(BATCH)])
    return {
        "input_ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "mlm_input_ids": ids[:, :-1].scatter(1, positions, 0),
        "mlm_positions": positions,
        "mlm_targets": ids[:, :-1].gather(1, positions),
    }


def phases(*phases: tuple[dict[str, float], dict[str, float]]) -> ObjectiveConfig:
    return ObjectiveConfig(phases=tuple(PhaseConfig(weights=weights, **length) for weights, length in phases))


def test_causal_loss_is_the_cross_entropy_of_every_next_token(model: GPT, batch: dict[str, Any]) -> None:
    logits = model.head.logits(model(batch["input_ids"]))
    expected = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    assert causal_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_masked_loss_is_the_cross_entropy_at_the_chosen_positions(model: GPT, batch: dict[str, Any]) -> None:
    logits = model.head.logits(model(batch["mlm_input_ids"], causal=False))
    chosen = [logits[row, positions] for row, positions in enumerate(batch["mlm_positions"])]
    expected = F.cross_entropy(torch.cat(chosen), batch["mlm_targets"].flatten())
    assert masked_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_only_chosen_positions_enter_the_head(model: GPT, batch: dict[str, Any]) -> None:
    seen = []
    model.head.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].shape))
    masked_loss(model, batch)
    assert seen == [(BATCH * CHOSEN, 16)]


def test_document_ids_reach_both_objectives(model: GPT, batch: dict[str, Any]) -> None:
    documents = {**batch, "document_ids": (torch.arange(LENGTH) > 5).int().expand(BATCH, -1)}
    for loss in (causal_loss, masked_loss):
        assert loss(model, documents).item() != loss(model, batch).item()


def test_both_losses_train_one_head_in_one_step(model: GPT, batch: dict[str, Any]) -> None:
    (0.5 * causal_loss(model, batch) + 0.5 * masked_loss(model, batch)).backward()
    both = model.head.weight.grad.clone()
    parts = []
    for loss in (causal_loss, masked_loss):
        model.zero_grad()
        loss(model, batch).backward()
        parts.append(model.head.weight.grad.clone())
    torch.testing.assert_close(both, (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-7)


def test_statistics_are_what_the_losses_are_means_of(model: GPT, batch: dict[str, Any]) -> None:
    pairs = ((causal_loss, causal_statistics, BATCH * LENGTH), (masked_loss, masked_statistics, BATCH * CHOSEN))
    for loss, statistics, count in pairs:
        sums = statistics(model, batch)
        assert sums.count == count
        assert sums.nats.item() / count == pytest.approx(loss(model, batch).item(), rel=1e-5)
        assert 0 <= sums.correct.item() <= count


def test_statistics_count_the_hits(model: GPT, batch: dict[str, Any]) -> None:
    with torch.no_grad():
        likeliest = model.head.logits(model(batch["input_ids"])).argmax(-1)
    assert causal_statistics(model, {**batch, "targets": likeliest}).correct.item() == BATCH * LENGTH


def test_fractions_cut_the_steps_at_the_nearest_one() -> None:
    config = phases((CLM, {"fraction": 0.5}), (MLM, {"fraction": 0.5}))
    assert [phase_of_step(config, step, 5) for step in range(5)] == [0, 0, 0, 1, 1]
    assert [phase_of_step(config, step, 4) for step in range(4)] == [0, 0, 1, 1]


def test_steps_and_fractions_mix() -> None:
    config = phases((CLM, {"steps": 3}), (BOTH, {"fraction": 0.5}), (MLM, {"steps": 2}))
    assert phase_ends(config, 10) == [3, 8, 10]
    assert objective_weights(config, 2, 10) == CLM
    assert objective_weights(config, 3, 10) == BOTH
    assert objective_weights(config, 9, 10) == MLM


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 999, 1000])
def test_every_step_lies_in_one_phase_and_phases_never_return(num_steps: int) -> None:
    config = phases(*[(CLM, {"fraction": 0.1})] * 10)
    numbers = [phase_of_step(config, step, num_steps) for step in range(num_steps)]
    assert numbers == sorted(numbers)
    assert phase_ends(config, num_steps)[-1] == num_steps
    if num_steps % 10 == 0:
        assert [numbers.count(n) for n in range(10)] == [num_steps // 10] * 10


def test_step_after_the_last_belongs_to_the_last_phase() -> None:
    config = phases((CLM, {"fraction": 0.5}), (MLM, {"fraction": 0.5}))
    assert phase_of_step(config, 10, 10) == 1


def test_weights_of_zero_are_left_out() -> None:
    config = phases(({"clm": 1.0, "mlm": 0.0}, {"fraction": 1.0}))
    assert objective_weights(config, 0, 10) == {"clm": 1.0}
