"""On GPUs: every strategy computes what ddp computes, in half precision too, and continues from what it has saved."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from pool_run import PoolRun
from safetensors.torch import load_file
from tiny_run import write_text
from worker_pool import Outcome, Pools

STEPS = 20
ZERO = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
PRECISIONS = ("bf16", "16")
LOSS_TOLERANCE = WEIGHT_TOLERANCE = 1e-3
"""Kernels on GPUs add in an order that may change from run to run, so nothing is compared bit for bit."""
ONE = pytest.param(1, marks=pytest.mark.gpu(1))
TWO = pytest.param(2, marks=pytest.mark.gpu(2))
Train = Callable[..., tuple[PoolRun, Outcome]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def device() -> str:
    return "cuda"


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, device: str) -> Iterator[Train]:
    """Yield a function that trains with a number of workers; what was trained once is kept."""
    folder = tmp_path_factory.mktemp("gpu")
    text = write_text(folder / "text.txt")
    pools = Pools(device)

    @cache
    def trained(
        num_workers: int, strategy: str, precision: str, root: Path | None = None, **settings: bool
    ) -> tuple[PoolRun, Outcome]:
        training = {"num_steps": STEPS, "precision": precision, "global_batch_size": 8, "micro_batch_size": 2}
        training |= settings
        run = PoolRun(
            pools[num_workers],
            text,
            root or folder / "-".join([str(num_workers), strategy, precision, *settings]),
            strategy,
            checkpoint={"interval_steps": STEPS // 2},
            training=training,
            optimizer={"learning_rate": 1e-4, "min_learning_rate": 1e-5},
        )
        outcome = run.train()
        assert outcome.error is None, outcome.error
        return run, outcome

    yield trained
    pools.close()


def assert_close(found: tuple[PoolRun, Outcome], expected: tuple[PoolRun, Outcome], first_step: int = 1) -> None:
    """Compare the losses from a step on, and each tensor of the exported models by the norm of its difference."""
    losses, expected_losses = found[1].losses(), expected[1].losses()
    assert sorted(losses) == list(range(first_step, STEPS + 1))
    assert losses == pytest.approx({step: expected_losses[step] for step in losses}, rel=LOSS_TOLERANCE)
    weights = load_file(found[0].weights())
    for name, tensor in load_file(expected[0].weights()).items():
        assert (weights[name] - tensor).norm() <= WEIGHT_TOLERANCE * tensor.norm(), name


@pytest.mark.parametrize("num_workers", [ONE, TWO])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("strategy", ZERO)
def test_zero_on_gpus_computes_what_ddp_computes(train: Train, num_workers: int, strategy: str, precision: str) -> None:
    assert_close(train(num_workers, strategy, precision), train(num_workers, "ddp", precision))


@pytest.mark.parametrize("num_workers", [ONE, TWO])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_half_precision_on_gpus_follows_float32(train: Train, num_workers: int, precision: str) -> None:
    losses, expected = (train(num_workers, "ddp", name)[1].losses() for name in (precision, "32"))
    assert losses == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("num_workers", [ONE, TWO])
@pytest.mark.parametrize("precision", ["32", *PRECISIONS])
@pytest.mark.parametrize("strategy", ["ddp", *ZERO])
def test_compiled_blocks_on_gpus_compute_what_eager_ones_do(
    train: Train, num_workers: int, strategy: str, precision: str
) -> None:
    assert_close(train(num_workers, strategy, precision, compile=True), train(num_workers, strategy, precision))


@pytest.mark.parametrize("num_workers", [ONE])
def test_tf32_follows_float32_and_is_another_computation(train: Train, num_workers: int) -> None:
    losses, expected = (train(num_workers, "ddp", "32", **tf32)[1].losses() for tf32 in ({"tf32": True}, {}))
    assert losses != expected
    assert losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("num_workers", [ONE, TWO])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("saved", "continued"), [*((name, name) for name in ("ddp", *ZERO)), ("zero3", "ddp"), ("ddp", "zero2_offload")]
)
def test_run_on_gpus_goes_on_from_what_it_has_saved(
    train: Train, tmp_path: Path, num_workers: int, saved: str, continued: str, precision: str
) -> None:
    whole = train(num_workers, saved, precision)
    root = whole[0].copied_to(tmp_path / "root", at_step=STEPS // 2)
    assert_close(train(num_workers, continued, precision, root), whole, first_step=STEPS // 2 + 1)
