"""The collectives of a step, counted: a step may wait for the other workers no more often than stated here."""

from collections import Counter
from pathlib import Path

import pytest
from planted_faults import LateVerdicts
from pool_run import PoolRun
from seen_collectives import SeenCollectives
from seen_reads import Reads, SeenReads
from tiny_run import write_text
from worker_pool import Pools

BATCH, WORKERS = 16, 2
OURS = Counter({"allreduce float32": 1})
"""In each step: the loss and gradient norm that the guard judges, with requests to stop or to save."""
NUM_PARAMETERS, NUM_GROUPS = 16, 2
PER_STEP = {
    "ddp": Counter({"allreduce float32": 1}),
    # the gradient, the norm of each group of parameters, and the new weights of each group
    "zero1": Counter({"allreduce float32": 1 + NUM_GROUPS, "allgather_base float32": NUM_GROUPS}),
    "zero2": Counter({"allreduce float32": NUM_GROUPS, "allgather_base float32": NUM_GROUPS}),
    # parameters that are small enough stay whole, and each is gathered after its update
    "zero3": Counter({"allreduce float64": NUM_GROUPS, "allgather_base float32": NUM_PARAMETERS}),
}
PER_MICRO_BATCH = {
    # the gradient, which these reduce at once to keep no more than their own part
    "zero2": Counter({"allreduce float32": 1}),
    "zero3": Counter({"reduce_scatter_base float32": 1}),
}
READS_OF_DEEPSPEED = {"zero1": 3, "zero2": 3, "zero3": 1}
"""Values that DeepSpeed 0.19.8 waits for in a step: the norm of the gradient, and whether it overflowed."""
QUIET_STEP = 14
"""Counted from 0; nothing is saved, reported or validated after it or the one before."""

pytestmark = pytest.mark.slow


def counted(pools: Pools, folder: Path, strategy: str, precision: str, num_micro_batches: int) -> SeenCollectives:
    """Return the collectives of a step, in which nothing is logged, saved or validated."""
    training = {
        "num_steps": 4,
        "global_batch_size": BATCH,
        "micro_batch_size": BATCH // WORKERS // num_micro_batches,
        "precision": precision,
        "log_interval_steps": 100,
    }
    seen = SeenCollectives(folder, step=1)
    text = write_text(folder / "text.txt")
    run = PoolRun(pools[WORKERS], text, folder, strategy, {"mode": "sync", "interval_steps": 4}, training)
    outcome = run.train(seen)
    assert outcome.error is None, outcome.error
    return seen


@pytest.mark.parametrize("num_micro_batches", [1, 4])
@pytest.mark.parametrize("strategy", sorted(PER_STEP))
def test_a_step_waits_for_the_other_workers_as_often_as_stated(
    pools: Pools, tmp_path: Path, strategy: str, num_micro_batches: int
) -> None:
    # float32 throughout, also under autocast
    expected = OURS + PER_STEP[strategy]
    for _ in range(num_micro_batches):
        expected += PER_MICRO_BATCH.get(strategy, Counter())
    assert counted(pools, tmp_path, strategy, "bf16", num_micro_batches).counts() == expected


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_half_precision_weights_halve_what_is_sent(pools: Pools, tmp_path: Path, strategy: str) -> None:
    large = [each for each in counted(pools, tmp_path, strategy, "bf16-true", 2).read() if each.num_elements > 1000]
    assert {each.dtype for each in large} == {"bfloat16"}
    assert {each.name for each in large} > {"allgather_base"}


@pytest.mark.parametrize("strategy", ["single", *PER_STEP])
def test_verdicts_that_are_read_late_cost_one_collective_and_no_wait(
    pools: Pools, tmp_path: Path, strategy: str
) -> None:
    pool = pools[1 if strategy == "single" else WORKERS]
    training = {"log_interval_steps": 10, "micro_batch_size": 4 // pool.world_size}
    run = PoolRun(pool, write_text(tmp_path / "text.txt"), tmp_path, strategy, {"interval_steps": 10}, training)
    collectives, reads = SeenCollectives(tmp_path, QUIET_STEP), SeenReads(tmp_path, QUIET_STEP)
    outcome = run.train(LateVerdicts(), reads, collectives)
    assert outcome.error is None, outcome.error
    of_micro_batch = PER_MICRO_BATCH.get(strategy, Counter())
    expected = Counter() if strategy == "single" else OURS + PER_STEP[strategy] + of_micro_batch + of_micro_batch
    for rank in range(pool.world_size):
        assert reads.read(rank) == Reads(at_once=READS_OF_DEEPSPEED.get(strategy, 0), late=1)
        assert collectives.counts(rank) == expected
