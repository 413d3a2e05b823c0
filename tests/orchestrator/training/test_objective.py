"""A step divides its losses by the targets of the global batch, for any number of workers and micro-batches."""

import itertools
from pathlib import Path

import pytest
import torch
from toy_objective import GLOBAL_BATCH_SIZE, LENGTH, ToyObjective
from worker_pool import Outcome, Pools

from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.checkpoint import open_checkpoint
from orchestrator.checkpoints.names import name_of
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.runs.run import Job, Run
from orchestrator.storage.store import Storage

Whole = tuple[dict[str, dict[int, float]], torch.Tensor]
BETA = 0.9
WAYS = [("single", 1), ("ddp", 2), ("ddp", 3), ("zero1", 2), ("zero2", 3), ("zero3", 2)]
SHARES = list(itertools.product(WAYS, (1, 2, 4)))

pytestmark = pytest.mark.slow


def train(pools: Pools, root: Path, way: tuple[str, int], num_pieces: int, toy: ToyObjective) -> Outcome:
    """Train two steps, each worker's share of a batch in `num_pieces` micro-batches."""
    name, world_size = way
    config = PretrainConfig.model_validate(
        {
            "storage": {"root": str(root)},
            "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "max_positions": LENGTH},
            "optimizer": {"gradient_clip_norm": None, "betas": [BETA, 0.95], "warmup_steps": 0},
            "training": {
                "num_steps": 2,
                "sequence_length": LENGTH,
                "global_batch_size": GLOBAL_BATCH_SIZE,
                "micro_batch_size": GLOBAL_BATCH_SIZE // world_size // num_pieces,
                "log_interval_steps": 1,
            },
            "strategy": {"name": name},
            "cluster": {"num_workers": world_size},
            "checkpoint": {"mode": "sync", "interval_steps": 1},
            "tracking": {"mode": "disabled"},
        }
    )
    return pools[world_size].train(Job(config, Run("toy", {}, "id"), Attempt("toy", 0, ""), toy))


def gradients(root: Path) -> torch.Tensor:
    """Return the gradient of all parameters in the first step, after which the first moment is 1 - BETA times it."""
    saved = open_checkpoint(Storage(str(root)), name_of("toy", 1))
    sizes = {name: torch.Size(shape).numel() for name, shape in sorted(saved.shapes.items())}
    moments = [saved.reader.read(name, "exp_avg", 0, size) for name, size in sizes.items()]
    return torch.cat(moments) / (1 - BETA)


@pytest.fixture(scope="module")
def whole(pools: Pools, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return the losses and gradients of one worker that computes a batch in one piece."""
    root = tmp_path_factory.mktemp("whole")
    outcome = train(pools, root, ("single", 1), 1, ToyObjective())
    assert outcome.error is None, outcome.error
    return {name: outcome.losses(f"train/{name}") for name in ("loss", "loss_first", "loss_last")}, gradients(root)


@pytest.mark.parametrize(("way", "num_pieces"), SHARES, ids=str)
def test_unequal_targets_give_the_same_loss_and_gradients_however_a_batch_is_shared_out(
    pools: Pools,
    tmp_path: Path,
    whole: Whole,
    way: tuple[str, int],
    num_pieces: int,
) -> None:
    losses, gradient = whole
    outcome = train(pools, tmp_path, way, num_pieces, ToyObjective())
    assert outcome.error is None, outcome.error
    for name, expected in losses.items():
        assert outcome.losses(f"train/{name}") == pytest.approx(expected, rel=1e-6), name
    difference = (gradients(tmp_path) - gradient).abs().max() / gradient.abs().max()
    print(f"{way[0]} workers={way[1]} micro-batches={num_pieces}: gradient within {float(difference):.1e}")
    assert difference <= 1e-6


def test_first_loss_is_the_mean_over_all_targets_of_the_batch(
    whole: Whole,
) -> None:
    losses, _ = whole
    # an untrained model predicts its 263 tokens almost uniformly; the 57 rows of padding get no probability
    assert losses["loss_first"][1] == pytest.approx(torch.tensor(263.0).log().item(), rel=0.02)
    assert losses["loss"][1] == pytest.approx(losses["loss_first"][1] + 0.5 * losses["loss_last"][1], rel=1e-6)


@pytest.mark.parametrize("way", [("single", 1), ("zero2", 2)], ids=str)
def test_an_objective_that_reports_a_wrong_number_of_targets_ends_the_run(
    pools: Pools, tmp_path: Path, way: tuple[str, int]
) -> None:
    outcome = train(pools, tmp_path, way, 2, ToyObjective(claims=1.25))
    assert "targets of first, but the objective reported" in (outcome.error or "")
