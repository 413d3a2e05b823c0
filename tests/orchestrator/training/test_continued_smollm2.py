"""A training that continues SmolLM2-135M-Instruct for 20 steps on two workers, under every strategy."""

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from pool_run import PoolRun
from safetensors.torch import load_file
from tiny_run import write_text
from worker_pool import Outcome, Pools

from modules.model_config import ModelConfig
from orchestrator.artifacts.base_model import open_base_model

STEPS, HALF = 20, 10
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def make_run(smollm2: Path, tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Callable[..., PoolRun]:
    folder = tmp_path_factory.mktemp("smollm2")
    text, number = write_text(folder / "text.txt"), itertools.count()
    base = open_base_model(ModelConfig(path=str(smollm2)), needs_mask=False)

    def make(strategy: str, num_workers: int) -> PoolRun:
        return PoolRun(
            pools[num_workers],
            text,
            folder / str(next(number)),
            strategy,
            checkpoint={"mode": "sync", "interval_steps": HALF},
            training={"num_steps": STEPS, "global_batch_size": 4},
            optimizer={"learning_rate": 1e-4, "min_learning_rate": 1e-5},
            model=base.config.model_dump(),
            tokenizer=base.tokenizer_config.model_dump(),
        )

    return make


def trained(run: PoolRun) -> Outcome:
    outcome = run.train()
    assert outcome.error is None, outcome.error
    return outcome


@pytest.fixture(scope="module")
def alone(make_run: Callable[..., PoolRun]) -> Callable[[], dict[int, float]]:
    """Return a function that returns the losses of one worker."""
    return cache(lambda: trained(make_run("single", 1)).losses())


@pytest.fixture(params=["single", "ddp", "zero1", "zero2", "zero3"])
def run(request: pytest.FixtureRequest, make_run: Callable[..., PoolRun]) -> Iterator[PoolRun]:
    made = make_run(request.param, 1 if request.param == "single" else 2)
    yield made
    made.remove()


def test_losses_are_those_of_one_worker_and_a_resumed_run_has_the_same_weights(
    run: PoolRun, alone: Callable[[], dict[int, float]]
) -> None:
    losses = trained(run).losses()
    largest = max(abs(losses[step] - loss) for step, loss in alone().items())
    print(f"largest difference {largest:.1e}, losses {losses[1]:.4f} to {losses[STEPS]:.4f}")
    assert len(losses) == STEPS
    assert largest < 1e-4
    whole = {name: tensor.clone() for name, tensor in load_file(run.weights()).items()}
    run.go_back_to(HALF)
    trained(run)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(run.weights()).items())
