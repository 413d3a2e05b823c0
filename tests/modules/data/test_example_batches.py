"""Rows of packed examples: the same global batch for every division, and the losses of each example alone."""

import itertools
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import GPT2, LLAMA, VOCAB, random_model

from modules.data.batches import Batch, Share
from modules.data.example_batches import ExampleBatches, ExampleSplit, ExampleValidationBatches, PackOrder
from modules.data.packing import pack, pack_totals
from modules.model import GPT

LENGTH, GLOBAL, NUM_EXAMPLES = 16, 12, 101
SHARES = [(world, micro) for world in (1, 2, 3) for micro in (1, 2, 4) if GLOBAL % (world * micro) == 0]


@cache
def split(is_classification: bool = False) -> ExampleSplit:
    """Examples of 2 to 16 tokens, the first of which is the example's number; a classification's label follows it."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, LENGTH + 1, NUM_EXAMPLES)
    offsets = np.concatenate([[0], lengths.cumsum()])
    tokens = generator.integers(0, VOCAB, offsets[-1]).astype(np.uint16)
    is_target = (generator.random(offsets[-1]) < 0.4).astype(np.uint8)
    is_target[offsets[1:] - 1] = 1
    is_target[offsets[:-1]] = 0
    tokens[offsets[:-1]] = np.arange(NUM_EXAMPLES)
    targets = np.add.reduceat(is_target.astype(np.int64), offsets[:-1])
    plan = (np.arange(NUM_EXAMPLES), np.arange(NUM_EXAMPLES + 1)) if is_classification else pack(lengths, LENGTH)
    return ExampleSplit(
        tokens,
        offsets,
        *plan,
        pack_tokens=pack_totals(lengths, plan),
        pack_targets=pack_totals(np.ones_like(targets) if is_classification else targets, plan),
        is_target=None if is_classification else is_target,
        labels=np.arange(NUM_EXAMPLES, dtype=np.int32) % 7 if is_classification else None,
        num_bytes=lengths * 3,
    )


both_kinds = pytest.mark.parametrize("is_classification", [False, True], ids=["targets", "labels"])
every_share = pytest.mark.parametrize(("world_size", "micro_batch_size"), SHARES)


def shares(world_size: int, micro_batch_size: int) -> list[Share]:
    return [Share(GLOBAL, micro_batch_size, rank, world_size) for rank in range(world_size)]


def contents(batch: Batch) -> list[tuple[Any, ...]]:
    """Each example of a row: its number, its tokens, and what it predicts."""
    parts = batch["input_ids"][0].split(batch["lengths"])
    if "labels" in batch:
        return [(int(ids[0]), tuple(ids.tolist()), int(y)) for ids, y in zip(parts, batch["labels"], strict=True)]
    chosen = torch.full_like(batch["input_ids"][0], -1)
    chosen[batch["target_positions"]] = batch["targets"]
    predicted = chosen.split(batch["lengths"])
    return [(int(x[0]), tuple(x.tolist()), tuple(y.tolist())) for x, y in zip(parts, predicted, strict=True)]


def expected(number: int, is_classification: bool) -> tuple[Any, ...]:
    data = split(is_classification)
    tokens = data.tokens[data.offsets[number] : data.offsets[number + 1]].astype(int).tolist()
    if data.labels is not None:
        return number, tuple(tokens), int(data.labels[number])
    assert data.is_target is not None
    chosen = data.is_target[data.offsets[number] : data.offsets[number + 1]]
    targets = [token if is_target else -1 for token, is_target in zip(tokens, chosen, strict=True)]
    return number, tuple(tokens[:-1]), tuple(targets[1:])


def step_contents(step: int, is_classification: bool, world_size: int = 1, micro_batch_size: int = GLOBAL) -> Counter:
    rows = [
        row
        for share in shares(world_size, micro_batch_size)
        for row in ExampleBatches(split(is_classification), share, seed=5).micro_batches(step)
    ]
    assert {len(row["sample_ids"]) for row in rows} == {micro_batch_size}
    assert all(row["step"] == step for row in rows)
    return Counter(example for row in rows for example in contents(row))


@both_kinds
@every_share
def test_a_step_is_the_same_batch_however_it_is_divided(
    world_size: int, micro_batch_size: int, is_classification: bool
) -> None:
    for step in (0, 3, 10**12):
        divided = step_contents(step, is_classification, world_size, micro_batch_size)
        assert divided == step_contents(step, is_classification)


@both_kinds
def test_steps_from_the_middle_are_those_of_the_whole_run(is_classification: bool) -> None:
    batches = ExampleBatches(split(is_classification), Share(GLOBAL, 4), seed=5)
    whole = list(itertools.islice(batches.from_step(0), 60))
    for first in (1, 7, 13):
        resumed = ExampleBatches(split(is_classification), Share(GLOBAL, 4), seed=5).from_step(first)
        for found, before in zip(itertools.islice(resumed, 9), whole[3 * first :], strict=False):
            assert contents(found) == contents(before)
            assert found["step"] == before["step"]


@both_kinds
def test_each_example_is_seen_once_in_an_epoch_and_as_it_was_written(is_classification: bool) -> None:
    data = split(is_classification)
    num_steps = data.num_packs  # that many steps are GLOBAL epochs, whose borders lie within global batches
    seen = sum((step_contents(step, is_classification) for step in range(num_steps)), Counter())
    assert seen == {expected(number, is_classification): GLOBAL for number in range(NUM_EXAMPLES)}
    packs = np.concatenate([PackOrder(data, GLOBAL, 5).packs(step) for step in range(num_steps)])
    epochs = packs.reshape(GLOBAL, -1)
    assert (np.sort(epochs, 1) == np.arange(data.num_packs)).all()
    assert not (epochs[0] == epochs[1]).all()
    assert not (PackOrder(data, GLOBAL, 6).packs(0) == PackOrder(data, GLOBAL, 5).packs(0)).all()


@both_kinds
def test_tokens_and_targets_of_a_step_are_counted_without_its_batches(is_classification: bool) -> None:
    data = split(is_classification)
    order = PackOrder(data, GLOBAL, seed=5)
    for step in range(2 * data.num_packs // GLOBAL):
        (row,) = ExampleBatches(data, Share(GLOBAL, GLOBAL), seed=5).micro_batches(step)
        assert order.num_targets(step) == len(row["labels" if is_classification else "targets"])
        unused = 0 if is_classification else len(row["lengths"])
        assert order.num_tokens(step) == row["input_ids"].numel() + unused
        assert row["lengths"] == sorted(row["lengths"])


def test_weights_of_targets_are_summed_as_they_are() -> None:
    data = split(is_classification=True)
    weights = data.labels / 4
    weighted = replace(data, pack_targets=weights)
    (row,) = ExampleBatches(data, Share(GLOBAL, GLOBAL), seed=5).micro_batches(2)
    assert PackOrder(weighted, GLOBAL, seed=5).num_targets(2) == (row["labels"] / 4).sum().item()


@both_kinds
@every_share
@pytest.mark.parametrize("num_batches", [1, 2, 1000])
def test_validation_reads_each_held_out_example_once(
    world_size: int, micro_batch_size: int, is_classification: bool, num_batches: int
) -> None:
    data = split(is_classification)
    workers = [
        list(ExampleValidationBatches(data, share, num_batches)) for share in shares(world_size, micro_batch_size)
    ]
    assert len({len(rows) for rows in workers}) == 1
    counted = [row for rows in workers for row in rows if not row["is_repeat"]]
    packs = [
        pack
        for rows in zip(*workers, strict=True)
        for row in rows
        if not row["is_repeat"]
        for pack in row["sample_ids"]
    ]
    assert packs == list(range(min(data.num_packs, num_batches * GLOBAL)))
    examples = data.order[: data.starts[len(packs)]]
    found = Counter(example for row in counted for example in contents(row))
    assert found == Counter(expected(number, is_classification) for number in examples.tolist())
    assert sum(row["num_bytes"] for row in counted) == data.num_bytes[examples].sum()


def test_a_worker_without_a_pack_repeats_one_and_says_so() -> None:
    data = split()
    one = replace(data, order=data.order[: data.starts[1]], starts=data.starts[:2])
    first, second = (list(ExampleValidationBatches(one, share, 5)) for share in shares(2, 3))
    assert [row["is_repeat"] for row in (*first, *second)] == [False, True]
    assert contents(first[0]) == contents(second[0])


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_the_loss_of_a_row_is_the_sum_of_the_losses_of_its_examples(config: Any) -> None:
    model = random_model(config, 128)
    for row in itertools.islice(ExampleBatches(split(), Share(GLOBAL, 4), seed=5).from_step(0), 4):
        hidden = model(row["input_ids"], lengths=row["lengths"])[0]
        found = model.head(hidden[row["target_positions"]], row["targets"])
        examples = [number for number, *_ in contents(row)]
        assert found.item() == pytest.approx(sum(loss_alone(model, number) for number in examples), rel=1e-6)


def loss_alone(model: GPT, number: int) -> float:
    """The loss of one example by all its tokens and plain logits."""
    data = split()
    ids = torch.from_numpy(data.tokens[data.offsets[number] : data.offsets[number + 1]].astype(np.int64))
    chosen = torch.from_numpy(data.is_target[data.offsets[number] : data.offsets[number + 1]]).bool()
    log_probabilities = model.head.logits(model(ids[None]))[0].log_softmax(-1)
    return -log_probabilities[:-1].gather(1, ids[1:, None])[chosen[1:]].sum().item()
