"""`training.precision` is one computation under every strategy: float32 weights, gradients and sums of gradients."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from float16 import as_on_gpu
from planted_faults import Plant
from pool_run import PoolRun
from safetensors.torch import load_file
from tiny_run import write_text
from torch import Tensor
from worker_pool import Outcome, Pools

STEPS, BATCH, WORKERS = 20, 32, 2
ZERO = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
LOSS_TOLERANCE = WEIGHT_TOLERANCE = 1e-3
Trained = tuple[Outcome, dict[str, Tensor]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Callable[..., PoolRun]:
    """Return a function that makes a run of a strategy, precision and number of accumulated micro-batches."""
    folder = tmp_path_factory.mktemp("precision")
    text = write_text(folder / "text.txt")
    number = itertools.count()

    def make(strategy: str, precision: str, accumulation: int = 1) -> PoolRun:
        return PoolRun(
            pools[WORKERS],
            text,
            folder / str(next(number)),
            strategy,
            checkpoint={"mode": "sync", "interval_steps": STEPS // 2},
            training={
                "num_steps": STEPS,
                "global_batch_size": BATCH,
                "micro_batch_size": BATCH // WORKERS // accumulation,
                "precision": precision,
            },
            optimizer={"learning_rate": 1e-4, "min_learning_rate": 1e-5},
        )

    return make


@pytest.fixture(scope="module")
def trained(run: Callable[..., PoolRun]) -> Callable[..., Trained]:
    """Return a function that returns the outcome and the weights of a whole run; what was trained once is kept."""

    @cache
    def train(strategy: str, precision: str, accumulation: int) -> Trained:
        asked = run(strategy, precision, accumulation)
        outcome = asked.train(*plants(precision))
        assert outcome.error is None, outcome.error
        return outcome, load_file(asked.weights())

    return train


def plants(precision: str) -> list[Plant]:
    return [as_on_gpu] if precision.startswith("16") else []


def differences(found: Trained, expected: Trained) -> tuple[float, float]:
    """Return the largest relative difference of a step's loss, and of a tensor in its norm."""
    (outcome, weights), (expected_outcome, expected_weights) = found, expected
    losses, expected_losses = outcome.losses(), expected_outcome.losses()
    assert len(losses) == len(expected_losses) == STEPS
    assert weights.keys() == expected_weights.keys()
    in_losses = [abs(losses[step] - loss) / loss for step, loss in expected_losses.items()]
    in_weights = [float((weights[name] - tensor).norm() / tensor.norm()) for name, tensor in expected_weights.items()]
    return max(in_losses), max(in_weights)


@pytest.mark.parametrize(
    ("strategy", "accumulation"),
    [
        pytest.param(strategy, accumulation, marks=pytest.mark.long if "_" in strategy and accumulation == 16 else [])
        for strategy, accumulation in itertools.product(ZERO, (1, 4, 16))
    ],
)
def test_bfloat16_is_the_same_computation_under_zero_as_under_ddp(
    trained: Callable[..., Trained], strategy: str, accumulation: int
) -> None:
    found, expected = trained(strategy, "bf16", accumulation), trained("ddp", "bf16", accumulation)
    in_losses, in_weights = differences(found, expected)
    assert in_losses <= LOSS_TOLERANCE
    assert in_weights <= WEIGHT_TOLERANCE


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_float16_is_the_same_computation_under_zero_as_under_ddp(
    trained: Callable[..., Trained], strategy: str
) -> None:
    in_losses, in_weights = differences(trained(strategy, "16", 4), trained("ddp", "16", 4))
    assert in_losses <= LOSS_TOLERANCE
    assert in_weights <= WEIGHT_TOLERANCE


def test_half_precision_weights_are_another_computation(trained: Callable[..., Trained]) -> None:
    _, in_weights = differences(trained("zero2", "bf16-true", 4), trained("ddp", "bf16", 4))
    assert in_weights > WEIGHT_TOLERANCE


@contextmanager
def with_torch_own_linear(rank: int) -> Iterator[None]:
    """Refuse to train with a linear layer that DeepSpeed has put in place of torch's for the whole process."""
    assert F.linear is torch._C._nn.linear  # type: ignore[attr-defined]
    yield


def test_zero_leaves_nothing_in_a_process_for_the_next_fit_in_it(
    run: Callable[..., PoolRun], trained: Callable[..., Trained]
) -> None:
    trained("zero3", "16", 4)
    outcome = run("zero2", "32").train(with_torch_own_linear)
    assert outcome.error is None, outcome.error
    # a loss scale that was left over would be seen in the norm
    norms, expected = (each.losses("optimizer/grad_norm") for each in (outcome, trained("ddp", "32", 1)[0]))
    assert norms == pytest.approx(expected, rel=1e-4)


@contextmanager
def of_an_earlier_version(rank: int) -> Iterator[None]:
    """Write checkpoints that do not say with which precision they were trained."""
    from orchestrator.checkpoints.progress import Progress

    write = Progress.to_json

    def without_precision(progress: Progress) -> str:
        return json.dumps({name: value for name, value in json.loads(write(progress)).items() if name != "precision"})

    with patch.object(Progress, "to_json", without_precision):
        yield


@pytest.mark.parametrize(
    ("precision", "is_of_an_earlier_version"), [("bf16", True), ("bf16", False), ("32", True)], ids=str
)
def test_run_is_told_once_that_its_precision_has_changed_its_meaning(
    run: Callable[..., PoolRun], precision: str, is_of_an_earlier_version: bool
) -> None:
    asked = run("zero1", precision)
    asked.train(*([of_an_earlier_version] if is_of_an_earlier_version else []))
    notes = []
    for step in (STEPS // 2, STEPS):
        asked.go_back_to(step)
        outcome = asked.train()
        assert outcome.error is None, outcome.error
        told = [event["text"] for event in outcome.events if event["kind"] == "note"]
        notes.append([text for text in told if "emulates" not in text])  # which some processors are told each time
    assert notes[1] == []
    if precision == "bf16" and is_of_an_earlier_version:
        (note,) = notes[0]
        assert note.startswith("the checkpoint after step 10 is of an earlier version, whose ZeRO strategies trained ")
    else:
        assert notes[0] == []
