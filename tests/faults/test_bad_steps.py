"""Bad steps planted in a training of two workers: skipped by both, with weights and moments as they were."""

import math
from pathlib import Path

import pytest
from planted_faults import PlantedLoss
from pool_run import BATCH, PoolRun
from safetensors.torch import load_file
from tiny_run import write_text
from worker_pool import Outcome, Pools, WorkerPool

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
NAN = math.nan
SYNC = {"mode": "sync"}
"""Saves for which no writer process has to start."""
SPIKE = {"spike_sigma": 8.0, "window_steps": 20}


@pytest.fixture(scope="module")
def pool(pools: Pools) -> WorkerPool:
    return pools[2]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def skips(outcome: Outcome) -> list[dict]:
    return [event for event in outcome.events if event["kind"] == "skip"]


@pytest.fixture(scope="module")
def one_bad_rank(pool, text, tmp_path_factory):
    """Runs in which one rank's loss is no number in the first step and in another one, by strategy."""

    class Runs(dict):
        def __missing__(self, strategy: str) -> tuple[PoolRun, Outcome]:
            run = PoolRun(pool, text, tmp_path_factory.mktemp(strategy), strategy, SYNC)
            self[strategy] = run, run.train(PlantedLoss((0, 12), factor=NAN, rank=1))
            return self[strategy]

    return Runs()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loss_that_is_no_number_on_one_rank_is_skipped_by_all(one_bad_rank, strategy: str) -> None:
    run, outcome = one_bad_rank[strategy]
    assert outcome.error is None, outcome.error
    for event, step in zip(skips(outcome), (0, 12), strict=True):
        samples = [step * BATCH, step * BATCH + BATCH - 1]
        reason = "the loss is not finite"
        expected = {"kind": "skip", "step": step, "reason": reason, "grad_norm": None, "samples": samples}
        expected["command"] = f"orchestrator batch run.name=tiny sample={samples[0]}-{samples[1]}"
        assert event == expected
    assert run.state(12) == run.state(13) != run.state(14)
    assert run.metrics()["faults/skipped_steps"] == 2
    assert all(tensor.isfinite().all() for tensor in load_file(run.weights()).values())


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "ddp"])
def test_the_other_steps_are_the_same_whatever_the_strategy(one_bad_rank, strategy: str) -> None:
    expected, losses = (one_bad_rank[name][1].losses() for name in ("ddp", strategy))
    bad = [step for step, loss in losses.items() if not math.isfinite(loss)]
    assert bad == [1, 13]  # figures are counted from 1
    good = [step for step in losses if step not in bad]
    assert [losses[step] for step in good] == pytest.approx([expected[step] for step in good], rel=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_skips_the_same_steps_and_ends_in_the_same_weights(
    pool, text, tmp_path: Path, strategy: str
) -> None:
    # loss alone, with a good gradient: under ZeRO, too, it is for us to skip the very first step
    first, spikes = PlantedLoss((0,), offset=NAN, rank=0), PlantedLoss((24, 26), factor=100.0)
    run = PoolRun(pool, text, tmp_path, strategy, SYNC, **SPIKE)
    whole = run.train(first, spikes)
    assert whole.error is None, whole.error
    assert [event["step"] for event in skips(whole)] == [0, 24, 26]
    assert run.state(24) == run.state(25) != run.state(26) == run.state(27)
    weights = run.weights().read_bytes()
    run.go_back_to(23 if strategy in ("ddp", "zero2") else 25)
    resumed = run.train(spikes)
    assert resumed.error is None, resumed.error
    assert skips(resumed) == skips(whole)[-len(skips(resumed)) :]
    assert skips(resumed)[-1]["step"] == 26
    assert run.weights().read_bytes() == weights
    assert run.metrics()["faults/skipped_steps"] == 3


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_too_many_bad_steps_in_a_row_fail_the_run(pool, text, tmp_path: Path, strategy: str) -> None:
    run = PoolRun(pool, text, tmp_path, strategy, SYNC, max_consecutive=3, max_rollbacks=0)
    outcome = run.train(PlantedLoss((2, 3, 5, 6, 7), factor=NAN, rank=1))
    assert [event["step"] for event in skips(outcome)] == [2, 3, 5, 6, 7]
    assert outcome.error is not None
    assert "BadStepsError: steps 6 to 8 were skipped (samples 40 to 63; at the end the loss is not finite)" in (
        outcome.error
    )
    assert "raise guard.max_consecutive or guard.max_rollbacks" in outcome.error
