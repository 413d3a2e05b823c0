"""A step costs one small collective beside those of its strategy, and no wait for the device."""

from pathlib import Path

import pytest
from planted_faults import LateVerdicts
from pool_run import PoolRun
from step_costs import LATE_READS, READS, StepCosts
from tiny_run import write_text
from worker_pool import Pools

QUIET_STEP = 14
"""Counted from 0; nothing is saved, reported or validated after it or the one before."""
OURS = {"allreduce": 1}
OF_STRATEGY = {
    "single": {},
    "ddp": {"allreduce": 1},  # the only bucket of gradients
    "zero1": {"allreduce": 3, "allgather_base": 2},
    "zero2": {"allreduce": 4, "allgather_base": 2},
    "zero3": {"allreduce": 2, "allgather_base": 16, "reduce_scatter_base": 2},
}
"""Collectives of a step of two micro-batches on two workers."""
READS_OF_DEEPSPEED = {"zero1": 3, "zero2": 3, "zero3": 1}
"""Values that DeepSpeed 0.19.8 waits for in a step: the norm of the gradient, and whether it overflowed."""


@pytest.mark.parametrize("strategy", OF_STRATEGY)
def test_a_step_adds_one_collective_and_waits_for_nothing(pools: Pools, tmp_path: Path, strategy: str) -> None:
    pool, ours = (pools[1], {}) if strategy == "single" else (pools[2], OURS)
    training = {"log_interval_steps": 10, "micro_batch_size": 4 // pool.world_size}
    run = PoolRun(pool, write_text(tmp_path / "text.txt"), tmp_path, strategy, {"interval_steps": 10}, training)
    costs = StepCosts(tmp_path)
    outcome = run.train(LateVerdicts(), costs)
    assert outcome.error is None, outcome.error
    of_strategy = OF_STRATEGY[strategy]
    for rank in range(pool.world_size):
        found = costs.read(rank, QUIET_STEP)
        assert found.pop(LATE_READS) == 1
        assert found.pop(READS, 0) == READS_OF_DEEPSPEED.get(strategy, 0)
        assert found == {name: of_strategy.get(name, 0) + ours.get(name, 0) for name in of_strategy | ours}
