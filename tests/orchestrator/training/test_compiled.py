"""`training.compile=true` trains the same model by the same command."""

import json
from itertools import product
from pathlib import Path

import pytest
from planted_faults import CompiledWithoutCompiler
from pool_run import PoolRun
from safetensors.torch import load_file
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


MODEL = {"num_layers": 3, "num_heads": 2, "hidden_dim": 48, "max_positions": 32}
AT_ONCE = {"zero_optimization": {"stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 0}}
AGAIN = {"activation_checkpointing": "blocks"}
APART = {"activation_checkpointing": "blocks", "attention_scope": "document"}
WHOLE, CUT = (1, 0), (6, 3)
"""Graphs and breaks: on CPU documents are attended to one by one, which is left out of what is compiled."""
CASES = [
    *(("ddp", "bf16", {}, WHOLE), ("zero3", "bf16", AGAIN, WHOLE)),
    *(pytest.param(name, "32", APART, CUT, marks=pytest.mark.long) for name in ("ddp", "zero3")),
    *(
        pytest.param(*case, {}, WHOLE, marks=pytest.mark.long)
        for case in (("ddp", "32"), ("zero3", "32"), *product(("zero1", "zero2"), ("32", "bf16")))
    ),
]


@pytest.mark.parametrize(("strategy", "precision", "settings", "graphs"), CASES)
def test_every_strategy_compiles_one_block_for_all(
    pools: Pools, tmp_path: Path, strategy: str, precision: str, settings: dict[str, str], graphs: tuple[int, int]
) -> None:
    text = write_text(tmp_path / "text.txt")
    losses, names, plant = [], [], CompiledWithoutCompiler(tmp_path)
    for is_compiled in (False, True):
        training = {"num_steps": 2, "compile": is_compiled, "precision": precision, **settings}
        deepspeed = AT_ONCE if strategy == "zero3" else {}
        root = tmp_path / str(is_compiled)
        run = PoolRun(pools[2], text, root, strategy, {"mode": "sync"}, training, model=MODEL, deepspeed=deepspeed)
        outcome = run.train(plant)
        assert outcome.error is None, outcome.error
        losses.append(outcome.losses())
        names.append(sorted(load_file(run.weights())))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6 if precision == "32" else 1e-4)
    assert names[1] == names[0]
    assert plant.read() == [(*graphs, 0)] * 2
