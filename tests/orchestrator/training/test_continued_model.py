"""A training that continues a published model, or begins a Llama from the seed, under every strategy."""

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from pool_run import PoolRun
from published_models import write_published
from safetensors.torch import load_file
from tiny_run import write_text
from worker_pool import Outcome, Pools

from modules.model_config import ModelConfig
from orchestrator.artifacts.base_model import open_base_model

STEPS = 6
LLAMA = {
    "family": "llama",
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "hidden_dim": 32,
    "max_positions": 32,
    "query_key_norm": True,
    "qkv_bias": True,
    "tie_embeddings": False,
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Callable[..., PoolRun]:
    folder = tmp_path_factory.mktemp("continued")
    text, number = write_text(folder / "text.txt"), itertools.count()
    for kind in ("gpt2", "llama", "untied"):
        write_published(folder / kind, kind)

    def make(
        kind: str, strategy: str, num_workers: int = 2, learning_rate: float = 1e-3, **training: object
    ) -> PoolRun:
        from_seed = kind == "seed"
        base = None if from_seed else open_base_model(ModelConfig(path=str(folder / kind)), needs_mask=False)
        return PoolRun(
            pools[num_workers],
            text,
            folder / str(next(number)),
            strategy,
            checkpoint={"mode": "sync"},
            training={"num_steps": STEPS, **training},
            optimizer={"learning_rate": learning_rate, "min_learning_rate": learning_rate / 2},
            model=LLAMA if base is None else base.config.model_dump(),
            tokenizer=None if base is None else base.tokenizer_config.model_dump(),
        )

    return make


@pytest.fixture(scope="module")
def alone(make_run: Callable[..., PoolRun]) -> Callable[[str], dict[int, float]]:
    """Return a function that returns the losses of one worker without a strategy."""

    @cache
    def losses(kind: str) -> dict[int, float]:
        return trained(make_run(kind, "single", 1)).losses()

    return losses


def trained(run: PoolRun) -> Outcome:
    outcome = run.train()
    assert outcome.error is None, outcome.error
    return outcome


@pytest.mark.parametrize("kind", ["gpt2", "llama", "untied", "seed"])
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_two_workers_have_the_losses_of_one(
    make_run: Callable[..., PoolRun], alone: Callable[[str], dict[int, float]], kind: str, strategy: str
) -> None:
    shared = trained(make_run(kind, strategy)).losses()
    assert len(alone(kind)) == len(shared) == STEPS
    assert all(abs(shared[step] - loss) < 1e-4 for step, loss in alone(kind).items())


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_resumed_training_has_the_weights_of_an_uninterrupted_one(
    make_run: Callable[..., PoolRun], strategy: str
) -> None:
    run = make_run("llama", strategy)
    trained(run)
    whole = load_file(run.weights())
    whole = {name: tensor.clone() for name, tensor in whole.items()}
    run.go_back_to(STEPS // 2)
    trained(run)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(run.weights()).items())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "untied"])
def test_the_first_step_starts_from_the_weights_of_the_model(
    make_run: Callable[..., PoolRun], tmp_path: Path, kind: str
) -> None:
    run = make_run(kind, "zero3", learning_rate=1e-12)
    trained(run)
    published = write_published(tmp_path / "model", kind).state_dict()
    for name, tensor in load_file(run.weights()).items():
        torch.testing.assert_close(tensor[: len(published[name])], published[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "untied"])
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_bfloat16_is_the_same_computation_under_zero_as_under_ddp(
    make_run: Callable[..., PoolRun], kind: str, strategy: str
) -> None:
    expected, found = (trained(make_run(kind, name, precision="bf16")).losses() for name in ("ddp", strategy))
    assert all(abs(found[step] - loss) < 1e-3 * loss for step, loss in expected.items())


@pytest.mark.long
def test_a_compiled_model_has_the_losses_of_an_eager_one(
    make_run: Callable[..., PoolRun], alone: Callable[[str], dict[int, float]]
) -> None:
    compiled = trained(make_run("untied", "single", 1, compile=True)).losses()
    assert all(abs(compiled[step] - loss) < 1e-4 for step, loss in alone("untied").items())
