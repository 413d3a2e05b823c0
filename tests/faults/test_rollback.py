"""Too many bad steps in a row, planted in the data: the run goes back, and passes over what it has seen since."""

import math
import signal
from pathlib import Path

import pytest
from planted_faults import (
    LateVerdicts,
    LivingModels,
    PlantedCrash,
    PlantedLoss,
    PlantedNotice,
    SeenSamples,
    ShiftedData,
)
from pool_run import BATCH, STEPS, PoolRun
from tiny_run import write_text
from worker_pool import Outcome, Pools, WorkerPool

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3")
MOST_IN_THE_LONG_FORM = [
    name if name in ("single", "zero3") else pytest.param(name, marks=pytest.mark.long) for name in STRATEGIES
]
BAD_DATA = PlantedLoss((6, 7, 8), factor=math.nan, rank=0, with_data=True)
SAVED_EVERY_FOUR = {"interval_steps": 4}
THREE_IN_A_ROW = {"max_consecutive": 3}


@pytest.fixture(scope="module")
def pool_of(pools: Pools) -> dict[str, WorkerPool]:
    """The workers that train by a strategy."""
    return {strategy: pools[1 if strategy == "single" else 2] for strategy in STRATEGIES}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def gone_back(pool_of, text, tmp_path_factory):
    """Runs that met the bad data after their checkpoint at step 4, by strategy, with what they saw."""

    class Runs(dict):
        def __missing__(self, strategy: str) -> tuple[PoolRun, Outcome, SeenSamples, bytes]:
            root = tmp_path_factory.mktemp(strategy)
            run, seen = (
                PoolRun(pool_of[strategy], text, root, strategy, SAVED_EVERY_FOUR, **THREE_IN_A_ROW),
                SeenSamples(root),
            )
            outcome = run.train(BAD_DATA, seen, LivingModels(root, STEPS - 1))
            assert outcome.error is None, outcome.error
            self[strategy] = run, outcome, seen, run.weights().read_bytes()
            return self[strategy]

    return Runs()


def steps_of(outcome: Outcome, kind: str) -> list[int]:
    return [event["step"] for event in outcome.events if event["kind"] == kind]


def samples_of(data_step: int) -> tuple[int, ...]:
    return tuple(range(data_step * BATCH, (data_step + 1) * BATCH))


def undisturbed(pool: WorkerPool, text: Path, root: Path, strategy: str, data: ShiftedData) -> bytes:
    """Return the weights of a run that never met the bad data: it was given other data from a step on."""
    run = PoolRun(pool, text, root, strategy, SAVED_EVERY_FOUR, **THREE_IN_A_ROW)
    outcome = run.train(BAD_DATA, data)
    assert outcome.error is None, outcome.error
    assert steps_of(outcome, "skip") == []
    return run.weights().read_bytes()


@pytest.mark.parametrize("strategy", MOST_IN_THE_LONG_FORM)
def test_run_goes_back_to_before_the_bad_steps_and_passes_over_all_data_since(gone_back, strategy: str) -> None:
    run, outcome, seen, _ = gone_back[strategy]
    (event,) = [event for event in outcome.events if event["kind"] == "rollback"]
    assert event == {
        "kind": "rollback",
        "step": 4,
        "from_step": 9,
        "data_steps": 5,
        "samples": [32, 71],
        "text": "steps 7 to 9 were skipped (samples 48 to 71; at the end the loss is not finite): back to the "
        "checkpoint after step 4, and on without samples 32 to 71 (rollback 1 of 3)",
    }
    before, after = [(step, samples_of(step)) for step in range(9)], range(4, STEPS)
    assert seen.read() == before + [(step, samples_of(step + 5)) for step in after]
    assert steps_of(outcome, "begin") == [0, 4]
    metrics = run.metrics()
    assert (metrics["faults/rollbacks"], metrics["faults/skipped_steps"]) == (1, 0)


@pytest.mark.parametrize("strategy", MOST_IN_THE_LONG_FORM)
def test_model_that_was_left_is_not_kept_in_memory(gone_back, strategy: str) -> None:
    _, _, seen, _ = gone_back[strategy]
    assert LivingModels(seen.folder, STEPS - 1).read() == [1] * (1 if strategy == "single" else 2)


@pytest.mark.parametrize("strategy", MOST_IN_THE_LONG_FORM)
def test_weights_are_those_of_a_run_that_never_met_the_bad_data(
    pool_of, gone_back, text, tmp_path: Path, strategy: str
) -> None:
    shifted = ShiftedData(first_step=4, num_steps=5)
    assert gone_back[strategy][3] == undisturbed(pool_of[strategy], text, tmp_path, strategy, shifted)


@pytest.mark.parametrize("strategy", MOST_IN_THE_LONG_FORM)
def test_run_killed_after_it_went_back_goes_back_once_more_to_the_same_weights(gone_back, strategy: str) -> None:
    run, _, _, weights = gone_back[strategy]
    run.go_back_to(4)  # as it lay there before the next checkpoint
    again = run.train(BAD_DATA)
    assert again.error is None, again.error
    assert (steps_of(again, "begin"), steps_of(again, "rollback")) == ([4, 4], [4])
    assert run.weights().read_bytes() == weights
    run.go_back_to(12)  # and after it
    again = run.train(BAD_DATA)
    assert again.error is None, again.error
    assert (steps_of(again, "begin"), steps_of(again, "skip")) == ([12], [])
    assert run.weights().read_bytes() == weights
    assert run.metrics()["faults/rollbacks"] == 1


@pytest.mark.parametrize("strategy", ["single", "zero3"])
def test_run_without_a_checkpoint_before_the_bad_steps_goes_back_to_its_initial_weights(
    pool_of, text, tmp_path_factory, strategy: str
) -> None:
    root = tmp_path_factory.mktemp("late")
    run = PoolRun(pool_of[strategy], text, root, strategy, {"interval_steps": 7}, **THREE_IN_A_ROW)
    outcome = run.train(BAD_DATA)
    assert outcome.error is None, outcome.error
    (event,) = [event for event in outcome.events if event["kind"] == "rollback"]
    assert (event["step"], event["from_step"], event["samples"]) == (0, 9, [0, 71])
    assert "back to the initial weights, and on without samples 0 to 71" in event["text"]
    shifted = ShiftedData(first_step=0, num_steps=9)
    expected = undisturbed(pool_of[strategy], text, tmp_path_factory.mktemp("undisturbed"), strategy, shifted)
    assert run.weights().read_bytes() == expected


def test_checkpoint_from_amid_the_bad_steps_is_gone_on_from_but_not_back_to(pool_of, text, tmp_path: Path) -> None:
    # saved after every step and only the newest kept, but for the one that is needed here
    run = PoolRun(pool_of["zero2"], text, tmp_path, "zero2", {"keep_last": 1, "mode": "sync"}, **THREE_IN_A_ROW)
    killed = run.train(BAD_DATA, PlantedCrash(8))
    assert killed.error is not None
    assert "planted crash" in killed.error
    assert run.saved_steps() == [6, 8]
    outcome = run.train(BAD_DATA)
    assert outcome.error is None, outcome.error
    assert (steps_of(outcome, "begin"), steps_of(outcome, "skip"), steps_of(outcome, "rollback")) == ([8, 6], [8], [6])
    assert run.saved_steps() == [STEPS]
    shifted = ShiftedData(first_step=6, num_steps=3)
    assert run.weights().read_bytes() == undisturbed(pool_of["zero2"], text, tmp_path / "undisturbed", "zero2", shifted)


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_run_fails_when_it_would_have_to_go_back_once_more_than_it_may(
    pool_of, text, tmp_path: Path, strategy: str
) -> None:
    bad, seen = PlantedLoss(tuple(range(6, 15)), factor=math.nan, rank=1, with_data=True), SeenSamples(tmp_path)
    run = PoolRun(pool_of[strategy], text, tmp_path, strategy, SAVED_EVERY_FOUR, max_rollbacks=2, **THREE_IN_A_ROW)
    outcome = run.train(bad, seen)
    assert outcome.error is not None
    assert "BadStepsError: steps 5 to 7 were skipped (samples 96 to 119; " in outcome.error
    assert "guard.max_rollbacks no more than 2 rollbacks" in outcome.error
    rollbacks = [event for event in outcome.events if event["kind"] == "rollback"]
    assert [(event["step"], event["from_step"], event["samples"]) for event in rollbacks] == [
        (4, 9, [32, 71]),
        (4, 7, [32, 95]),
    ]
    tries = [zip(range(9), range(9), strict=True), zip((4, 5, 6), (9, 10, 11), strict=True)]
    tries.append(zip((4, 5, 6), (12, 13, 14), strict=True))
    assert seen.read() == [(step, samples_of(data_step)) for one in tries for step, data_step in one]


def test_failed_run_goes_on_when_it_may_go_back_more_often(pool_of, gone_back, text, tmp_path: Path) -> None:
    run = PoolRun(pool_of["ddp"], text, tmp_path, "ddp", SAVED_EVERY_FOUR, max_rollbacks=0, **THREE_IN_A_ROW)
    assert "BadStepsError" in (run.train(BAD_DATA).error or "")
    run = PoolRun(pool_of["ddp"], text, tmp_path, "ddp", SAVED_EVERY_FOUR, **THREE_IN_A_ROW)
    outcome = run.train(BAD_DATA)
    assert outcome.error is None, outcome.error
    assert run.weights().read_bytes() == gone_back["ddp"][3]


def test_notice_in_the_step_that_ends_the_patience_is_not_lost(pool_of, gone_back, text, tmp_path: Path) -> None:
    run = PoolRun(pool_of["ddp"], text, tmp_path, "ddp", SAVED_EVERY_FOUR, **THREE_IN_A_ROW)
    stopped = run.train(BAD_DATA, PlantedNotice(step=8, signal=signal.SIGTERM, rank=1))
    assert "StoppedError: SIGTERM: saved after step 5 and stopped" in (stopped.error or "")
    outcome = run.train(BAD_DATA)
    assert outcome.error is None, outcome.error
    assert (steps_of(outcome, "begin"), steps_of(outcome, "rollback")) == ([5], [])
    assert run.weights().read_bytes() == gone_back["ddp"][3]


@pytest.mark.parametrize(
    "strategy",
    [name if name == "ddp" else pytest.param(name, marks=pytest.mark.long) for name in STRATEGIES],
)
def test_verdicts_that_are_read_a_step_later_change_nothing(pool_of, text, tmp_path: Path, strategy: str) -> None:
    outcomes, weights, states = [], [], []
    for plants in ((), (LateVerdicts(),)):
        run = PoolRun(
            pool_of[strategy],
            text,
            tmp_path / str(len(plants)),
            strategy,
            SAVED_EVERY_FOUR,
            {"log_interval_steps": 10},  # most steps are looked at by nobody
            spike_sigma=8.0,
            **THREE_IN_A_ROW,
        )
        outcomes.append(run.train(BAD_DATA, PlantedLoss((25,), factor=100.0), *plants))
        weights.append(run.weights().read_bytes())
        states.append(run.state(28))
    at_once, late = outcomes
    assert (at_once.error, late.error) == (None, None)
    assert len(steps_of(at_once, "rollback")) == 1
    assert steps_of(at_once, "skip") == [6, 7, 8, 25]
    for kind in ("skip", "rollback", "checkpoint"):
        assert [known(event) for event in late.events if event["kind"] == kind] == [
            known(event) for event in at_once.events if event["kind"] == kind
        ]
    assert weights[0] == weights[1]
    assert states[0] == states[1]


def known(event: dict) -> str:
    """Return what an event says besides times, as text, in which one NaN equals another."""
    return str({name: value for name, value in event.items() if not name.endswith("seconds")})
