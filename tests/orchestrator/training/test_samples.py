"""The samples after a validation under ZeRO-3: how often they gather the weights, and what they say of it."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pool_run import PoolRun
from seen_samples import GeneratedAgain
from tiny_run import write_text
from worker_pool import Outcome, Pools, WorkerPool

from modules.generation.sampling import Sampling
from modules.huggingface.weights import parameter_shapes
from orchestrator.training.samples import Samples, generate

TOKENS, FEW = 4, 2
LARGE = dict.fromkeys(
    (
        "stage3_param_persistence_threshold",
        "stage3_max_reuse_distance",
        "stage3_max_live_parameters",
        "stage3_prefetch_bucket_size",
    ),
    0,
)
"""As for a model of billions of weights, of which DeepSpeed keeps none whole between two passes."""

pytestmark = pytest.mark.slow


def train(pool: WorkerPool, folder: Path, precision: str) -> tuple[PoolRun, Outcome, GeneratedAgain]:
    seen = GeneratedAgain(folder, 2, TOKENS, limits=(None, 100, FEW))
    training = {"num_steps": 2, "val_batches": 1, "precision": precision}
    text = write_text(folder / "text.txt")
    run = PoolRun(pool, text, folder, "zero3", {}, training, deepspeed={"zero_optimization": LARGE}, val_fraction=0.2)
    outcome = run.train(seen)
    assert outcome.error is None, outcome.error
    return run, outcome, seen


@pytest.mark.parametrize(
    "precision", ["bf16", pytest.param("32", marks=pytest.mark.long), pytest.param("bf16-true", marks=pytest.mark.long)]
)
def test_samples_under_zero3_gather_each_weight_once(pools: Pools, tmp_path: Path, precision: str) -> None:
    run, outcome, seen = train(pools[2], tmp_path, precision)
    alone, together, shorter = seen.read()
    assert alone.rows == together.rows
    assert [len(row) for row in alone.rows] == [1 + TOKENS, 1 + TOKENS]
    assert [row[: 1 + FEW] for row in alone.rows] == shorter.rows
    num_weights = sum(map(math.prod, parameter_shapes(run.model, vocab_size=257).values()))
    assert alone.num_gathered == num_weights
    # the head is tied to the embedding, which is gathered for it once more
    assert together.num_gathered > TOKENS * num_weights
    assert shorter.num_gathered <= together.num_gathered * FEW / TOKENS
    assert [each[2:] for each in seen.read(rank=1)] == [each[2:] for each in seen.read()]
    assert {each.num_held for each in seen.read()} == {0}
    assert (alone.note, together.note) == (None, None)
    (event,) = [event for event in outcome.events if event["kind"] == "validation"]
    assert event["samples_note"] == shorter.note
    assert f"up to {FEW} tokens instead of {TOKENS}" in str(shorter.note)
    told = [event["text"] for event in outcome.events if event["kind"] == "note"]
    assert [text for text in told if "emulates" not in text] == [shorter.note]  # which some processors are told


def test_each_sample_begins_with_its_prompt_and_ends_before_its_end() -> None:
    tokens = [[10, 20], [11, 7], [7, 21], [12, 22]]  # of two samples of each prompt; 7 ends one
    module: Any = SimpleNamespace(
        objective=SimpleNamespace(prompts=lambda number: [[1, 2], [3]]), model=torch.nn.Linear(1, 1)
    )
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(predict_step=lambda batch, index: list(torch.tensor(tokens).T))
    )
    found = generate(trainer, module, Sampling(num_sequences=4, end_ids=(7,)), most_passes=0)
    assert found == Samples([[1, 2, 10, 20], [1, 2, 11], [3], [3, 12, 22]])


@pytest.mark.gpu(1)
@pytest.mark.parametrize("precision", ["bf16", "bf16-true"])
def test_samples_on_a_gpu_are_those_that_all_workers_would_have_generated(tmp_path: Path, precision: str) -> None:
    pools = Pools("cuda")
    try:
        _, _, seen = train(pools[1], tmp_path, precision)
    finally:
        pools.close()
    alone, together, _ = seen.read()
    assert alone.rows == together.rows
    assert (alone.note, alone.num_held) == (None, 0)
