"""After which steps a run is saved."""

import math

import pytest

from orchestrator.configuration.groups import CheckpointConfig
from orchestrator.planning.save_interval import young_seconds
from orchestrator.training.save_schedule import FIRST_STEPS, SaveSchedule, seen_mtbf_seconds

AUTO = CheckpointConfig(interval="auto", mtbf_seconds=3600)


def never_called() -> float:
    raise AssertionError("the mean time between faults was requested")


def test_a_fixed_interval_ignores_the_cost_of_saves() -> None:
    schedule = SaveSchedule(CheckpointConfig(interval_steps=10), never_called)
    due = []
    for step in range(1, 31):
        if schedule.is_due(step):
            due.append(step)
            schedule.saved(step, 1000.0, 0.1)
    assert due == [10, 20, 30]


def test_interval_follows_youngs_formula_from_the_first_measured_save() -> None:
    schedule = SaveSchedule(AUTO, never_called)
    due = []
    for step in range(101, 1000):
        if schedule.is_due(step):
            due.append(step)
            schedule.saved(step, cost_seconds=0.5, step_seconds=0.3)
    first = 100 + FIRST_STEPS
    apart = math.sqrt(2 * 0.5 * 3600) / 0.3
    assert due[:3] == [first, first + round(apart), first + 2 * round(apart)]


@pytest.mark.parametrize("num_faults", [1, 4])
def test_mtbf_is_what_the_run_has_seen(num_faults: int) -> None:
    faults = [{"kind": "fault", "time": 100.0 * number, "text": ""} for number in range(1, num_faults + 1)]
    events = [{"kind": "launch", "time": 0.0}, *faults, {"kind": "begin", "time": 800.0, "step": 0}]
    assert seen_mtbf_seconds(events) == 800 / num_faults
    schedule = SaveSchedule(CheckpointConfig(interval="auto"), lambda: seen_mtbf_seconds(events))
    schedule.saved(10, cost_seconds=1.0, step_seconds=1.0)
    apart = round(young_seconds(1.0, 800 / num_faults))
    assert [schedule.is_due(10 + apart - 1), schedule.is_due(10 + apart)] == [False, True]


def test_save_does_not_wait_for_the_events_of_earlier_attempts() -> None:
    known = iter([None, None, 800.0])
    schedule = SaveSchedule(CheckpointConfig(interval="auto"), lambda: next(known))
    due = []
    for step in range(1, 2000):
        if schedule.is_due(step):
            due.append(step)
            schedule.saved(step, cost_seconds=0.5, step_seconds=1.0)
    once_a_day = round(young_seconds(0.5, 86400))
    seen = round(young_seconds(0.5, 800))
    assert due[:4] == [10, 10 + once_a_day, 10 + 2 * once_a_day, 10 + 2 * once_a_day + seen]


def test_a_young_run_without_faults_assumes_one_a_day() -> None:
    assert seen_mtbf_seconds([]) == 86400
