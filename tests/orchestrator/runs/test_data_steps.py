"""The data of each step follows from a run's events, through restarts, resizes and rollbacks."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.configuration.batch import BatchConfig
from orchestrator.errors import DamagedFileError, UserError
from orchestrator.runs.asked_steps import AskedStep, Course
from orchestrator.runs.data_steps import DataSteps, read_data_steps
from orchestrator.runs.events import DRIVER_KINDS, WORKER_KINDS, EventLog
from orchestrator.runs.run import Run
from orchestrator.storage.store import Storage

BATCH = 8
LAUNCH, FAULT = {"kind": "launch"}, {"kind": "fault", "text": "lost"}
SKIPS = [{"kind": "skip", "step": step, "reason": "the loss is not finite"} for step in (6, 7, 8)]
ROLLBACK = {"kind": "rollback", "step": 4, "from_step": 9, "samples": [32, 71], "data_steps": 5}
"""As in tests/faults/test_rollback.py: steps 7 to 9 were bad, and the run goes on from step 4 with data step 9."""
AGAIN = {**ROLLBACK, "from_step": 7, "samples": [72, 95]}
ONCE_BACK = [LAUNCH, {"kind": "begin", "step": 0, "world_size": 2, "micro_batch_size": 2}, *SKIPS, ROLLBACK]


def begin(step: int, world_size: int = 2, **others: int) -> dict[str, Any]:
    return {"kind": "begin", "step": step, "world_size": world_size, **others}


def data_steps(found: DataSteps) -> list[int | None]:
    """Return the data step of each step that lasts, from step 1 on."""
    lasting = ((step, found.lasting(step)) for step in range(1, 13))
    return [one.data_step(step) if one else None for step, one in lasting]


def asked(events: list[dict[str, Any]], reached: int, **fields: Any) -> list[AskedStep]:
    course = Course("tiny", DataSteps.of(events, BATCH, reached), BATCH, lambda _: None)
    config = BatchConfig.model_validate({"run": {"name": "tiny"}, **fields})
    return list(course.asked(config))


PLAIN, AFTER = [*range(12)], [0, 1, 2, 3, *range(9, 17)]


@pytest.mark.parametrize(
    ("events", "reached", "expected"),
    [
        ([LAUNCH, begin(0)], 12, PLAIN),
        ([LAUNCH, begin(0), FAULT, begin(5), FAULT, begin(5, 1)], 12, PLAIN),
        ([*ONCE_BACK, begin(4)], 12, AFTER),
        # killed after it went back: before the next checkpoint it does all of it again, after it goes on
        ([*ONCE_BACK, begin(4), FAULT, begin(4), *SKIPS, ROLLBACK, begin(4)], 12, AFTER),
        ([*ONCE_BACK, begin(4), FAULT, begin(4)], 7, [*range(7), *[None] * 5]),
        ([*ONCE_BACK, FAULT, begin(4)], 7, [*range(7), *[None] * 5]),
        ([*ONCE_BACK, begin(4), FAULT, begin(8)], 12, AFTER),
        ([*ONCE_BACK, begin(4), FAULT, begin(8), FAULT, begin(8)], 12, AFTER),
        # gone back, and nothing trained yet
        (ONCE_BACK, 4, [0, 1, 2, 3, *[None] * 8]),
        # the checkpoint after step 4 was damaged: back to the initial weights
        ([*ONCE_BACK[:-1], {**ROLLBACK, "step": 0, "samples": [0, 71]}, begin(0)], 12, [*range(9, 21)]),
        # twice: the second time from data step 12 on
        (
            [*ONCE_BACK, begin(4), AGAIN, begin(4)],
            12,
            [*range(4), *range(12, 20)],
        ),
    ],
)
def test_each_step_has_the_data_that_its_training_counted(
    events: list[dict[str, Any]], reached: int, expected: list[int | None]
) -> None:
    found = DataSteps.of(events, BATCH, reached)
    assert data_steps(found) == expected
    assert found.reached == reached


def test_step_that_was_trained_twice_tells_its_first_data_and_how_to_see_it() -> None:
    (one,) = asked([*ONCE_BACK, begin(4)], 12, step=8)
    assert one.samples == tuple(range(12 * BATCH, 13 * BATCH))
    command = "orchestrator batch run.name=tiny sample=56-63"
    assert one.notes == (f"trained before on samples 56 to 63, which a rollback has undone: {command}",)


def test_samples_that_were_skipped_are_found_after_the_run_went_back() -> None:
    (one,) = asked([*ONCE_BACK, begin(4)], 12, sample="56-63")
    assert (one.step, one.data_step, one.samples) == (8, 7, tuple(range(56, 64)))
    skipped = "the guard skipped it: the loss is not finite; weights and moments stayed as they were"
    assert one.notes == (skipped, "undone by a rollback: the step 8 that lasts was trained on samples 96 to 103")


def test_step_that_was_undone_and_not_reached_again_says_so() -> None:
    (one,) = asked(ONCE_BACK, 4, step=9)
    assert one.data_step == 8
    assert one.notes[-1] == "undone: it has reached step 4, and has not trained it again"


def test_worker_has_its_share_by_the_workers_that_trained_the_step() -> None:
    events = [LAUNCH, begin(0, 2, micro_batch_size=2), FAULT, begin(5, 4, micro_batch_size=1)]
    before, after = (asked(events, 12, step=step, worker=1) for step in (5, 6))
    assert before[0].samples == (34, 35, 38, 39)  # of micro-batches of two of two workers
    assert after[0].samples == (41, 45)  # of one of four
    with pytest.raises(UserError, match=r"worker=2: step 5 was trained by 2 workers, 0 to 1"):
        asked(events, 12, step=5, worker=2)
    with pytest.raises(UserError, match="was not recorded by the version that trained it"):
        asked([LAUNCH, begin(0, 2)], 12, step=5, worker=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": 13}, "step=13: run tiny has not come so far; it has reached step 12"),
        ({"step": "12-13"}, "step=13: run tiny has not come so far"),
        ({"step": 3, "sample": 24}, "sample=24: step 3 has the samples 16-23"),
        ({"sample": "90-96"}, "sample=90-96: run tiny has not come so far; it has used samples 0 to 95"),
    ],
)
def test_what_the_run_has_not_used_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        asked([LAUNCH, begin(0)], 12, **fields)
    assert message in str(refused.value)


def test_run_that_has_not_begun_has_no_step() -> None:
    for fields in ({"step": 1}, {"sample": 0}):
        with pytest.raises(UserError, match="finished no step yet|used none yet"):
            asked([LAUNCH], 0, **fields)


def test_samples_across_steps_are_those_of_each_step() -> None:
    found = asked([LAUNCH, begin(0)], 12, sample="6-17")
    assert [(one.step, one.samples) for one in found] == [(1, (6, 7)), (2, tuple(range(8, 16))), (3, (16, 17))]
    found = asked([LAUNCH, begin(0)], 12, step="2-3", sample="6-9")
    assert [(one.step, one.samples) for one in found] == [(2, (8, 9))]


@pytest.mark.parametrize(("events", "is_whole"), [([begin(0), ROLLBACK, begin(4)], True), ([begin(0)], False)])
def test_event_that_is_missing_is_noticed_by_the_newest_checkpoint(
    tmp_path: Path, events: list[dict[str, Any]], is_whole: bool
) -> None:
    storage, run = Storage(str(tmp_path)), Run("tiny", {}, "")
    log, driver = (EventLog(storage, run.folder, kinds) for kinds in (WORKER_KINDS, DRIVER_KINDS))
    driver.record(LAUNCH)
    for event in events:
        log.record(event)
    guard = {"grad_norms": [], "num_skipped": 0, "num_in_a_row": 0, "num_rollbacks": 1}
    progress = {"step": 12, "tokens": 1, "loss_scale": None, "data_offset": 5, "guard": guard, "scores": {}}
    storage.write_bytes(f"{run.folder}/checkpoints/step_00000012/state.json", json.dumps(progress).encode())
    storage.write_bytes(f"{run.folder}/checkpoints/step_00000012/COMMITTED", b"")
    if is_whole:
        assert data_steps(read_data_steps(storage, run, BATCH)) == AFTER
        return
    with pytest.raises(DamagedFileError, match="had the data of data step 11, and by its checkpoint that of 16"):
        read_data_steps(storage, run, BATCH)
