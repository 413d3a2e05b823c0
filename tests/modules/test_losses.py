"""Losses and statistics of batches."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from modules.losses import causal_loss, causal_statistics, masked_loss, masked_statistics
from modules.model import GPT, initialize
from modules.model_config import ModelConfig

VOCAB, BATCH, LENGTH, CHOSEN = 50, 3, 12, 4


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


def test_causal_loss_is_the_cross_entropy_of_every_next_token(model: GPT, batch: dict[str, Any]) -> None:
    logits = model.head.logits(model(batch["input_ids"]))
    expected = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
    loss = causal_loss(model, batch)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.num_targets == BATCH * LENGTH


def test_masked_loss_is_the_cross_entropy_at_the_chosen_positions(model: GPT, batch: dict[str, Any]) -> None:
    logits = model.head.logits(model(batch["mlm_input_ids"], causal=False))
    chosen = [logits[row, positions] for row, positions in enumerate(batch["mlm_positions"])]
    expected = F.cross_entropy(torch.cat(chosen), batch["mlm_targets"].flatten(), reduction="sum")
    loss = masked_loss(model, batch)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.num_targets == BATCH * CHOSEN


def test_only_chosen_positions_enter_the_head(model: GPT, batch: dict[str, Any]) -> None:
    seen = []
    model.head.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].shape))
    masked_loss(model, batch)
    assert seen == [(BATCH * CHOSEN, 16)]


def test_documents_reach_both_objectives(model: GPT, batch: dict[str, Any]) -> None:
    documents = {**batch, "lengths": [5, LENGTH - 5] * BATCH, "positions": torch.arange(LENGTH)}
    for loss in (causal_loss, masked_loss):
        assert loss(model, documents).total.item() != loss(model, batch).total.item()


def test_both_losses_train_one_head_in_one_step(model: GPT, batch: dict[str, Any]) -> None:
    (0.5 * causal_loss(model, batch).total + 0.5 * masked_loss(model, batch).total).backward()
    both = model.head.weight.grad.clone()
    parts = []
    for loss in (causal_loss, masked_loss):
        model.zero_grad()
        loss(model, batch).total.backward()
        parts.append(model.head.weight.grad.clone())
    torch.testing.assert_close(both, (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-7)


def test_statistics_are_what_the_losses_sum_up(model: GPT, batch: dict[str, Any]) -> None:
    pairs = ((causal_loss, causal_statistics, BATCH * LENGTH), (masked_loss, masked_statistics, BATCH * CHOSEN))
    for loss, statistics, count in pairs:
        sums = statistics(model, batch)
        assert sums.count == count
        assert sums.nats.item() == pytest.approx(loss(model, batch).total.item(), rel=1e-5)
        assert 0 <= sums.correct.item() <= count


def test_statistics_count_the_hits(model: GPT, batch: dict[str, Any]) -> None:
    with torch.no_grad():
        likeliest = model.head.logits(model(batch["input_ids"])).argmax(-1)
    assert causal_statistics(model, {**batch, "targets": likeliest}).correct.item() == BATCH * LENGTH
