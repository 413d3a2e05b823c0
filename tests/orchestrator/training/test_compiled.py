"""`training.compile=true` trains the same model by the same command."""

import json
from pathlib import Path

import pytest
from pool_run import PoolRun
from tiny_run import arguments, write_text
from torch._dynamo.utils import counters
from worker_pool import Pools

from orchestrator.cli import main

SMALL = (
    *("objective=clm", "model.num_layers=1", "training.num_steps=2", "optimizer.warmup_steps=1"),
    *("data.val_fraction=0.0", "checkpoint.mode=sync", "checkpoint.interval_steps=2", "tracking.mode=disabled"),
)
"""One graph forward and one backward, since Inductor takes seconds to compile each."""

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _nothing_compiled_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    # a pool of compiling processes costs more than it saves for one graph
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")


def trained(root: Path, text: Path, is_compiled: bool) -> float:
    """Return the last loss of `pretrain`, and check that it compiled if it was asked to."""
    counters.clear()
    assert main(arguments(text, root, *SMALL, "run.name=tiny", f"training.compile={str(is_compiled).lower()}")) == 0
    assert bool(counters["stats"]["unique_graphs"]) == is_compiled
    return json.loads((root / "runs/tiny/metrics.json").read_text())["train/loss"]


def test_compiled_run_has_the_losses_of_one_that_is_not(empty_folder: Path) -> None:
    text = write_text(empty_folder / "text.txt")
    expected = trained(empty_folder / "plain", text, is_compiled=False)
    assert trained(empty_folder / "compiled", text, is_compiled=True) == pytest.approx(expected, rel=1e-5)
    assert not counters["graph_break"]


@pytest.mark.long
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3"])
def test_every_strategy_trains_a_compiled_model(pools: Pools, tmp_path: Path, strategy: str, precision: str) -> None:
    text = write_text(tmp_path / "text.txt")
    losses = []
    for is_compiled in (False, True):
        training = {"num_steps": 2, "compile": is_compiled, "precision": precision}
        run = PoolRun(pools[2], text, tmp_path / str(is_compiled), strategy, {"mode": "sync"}, training)
        outcome = run.train()
        assert outcome.error is None, outcome.error
        losses.append(outcome.losses())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if precision == "32" else 1e-3)
