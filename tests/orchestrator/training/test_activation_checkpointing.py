"""`training.activation_checkpointing` changes no bit of a run, also where it is set in a run that has begun."""

from pathlib import Path
from typing import Any

import pytest
from pool_run import PoolRun
from tiny_run import write_text
from worker_pool import Outcome, Pools

pytestmark = pytest.mark.slow

STEPS, BEGUN = 3, 1
MODEL = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "max_positions": 32}
CASES = [
    # without dropout, whose masks are the first that a backward pass needs, it first needs weights
    *(("single", 1, 0.1), ("ddp", 2, 0.1), ("zero3", 2, 0.0)),
    *(pytest.param(name, 2, 0.1, marks=pytest.mark.long) for name in ("zero1", "zero2", "zero3")),
]
# weights are let go after each use, so that they are gathered in the middle of what is computed again
AT_ONCE = {"zero_optimization": {"stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 0}}


@pytest.mark.parametrize(("strategy", "workers", "dropout"), CASES)
def test_a_begun_run_goes_on_with_it_bit_for_bit(
    pools: Pools, tmp_path: Path, strategy: str, workers: int, dropout: float
) -> None:
    text, model = write_text(tmp_path / "text.txt"), {**MODEL, "dropout": dropout}

    def run(root: Path, mode: str) -> PoolRun:
        training: dict[str, Any] = {"num_steps": STEPS, "attention_scope": "document", "activation_checkpointing": mode}
        deepspeed = AT_ONCE if strategy == "zero3" else {}
        return PoolRun(pools[workers], text, root, strategy, training=training, model=model, deepspeed=deepspeed)

    def trained(of: PoolRun) -> Outcome:
        outcome = of.train()
        assert outcome.error is None, outcome.error
        return outcome

    whole = run(tmp_path / "whole", "none")
    losses = trained(whole).losses()
    for mode in ("blocks", "selective"):
        begun = run(whole.copied_to(tmp_path / mode, BEGUN), mode)
        resumed = trained(begun).losses()
        assert resumed == {step: loss for step, loss in losses.items() if step > BEGUN}
        assert begun.weights().read_bytes() == whole.weights().read_bytes()
