"""Goodput from events: time that was kept, time that was lost, and time that does not count."""

from pathlib import Path

import pytest

from orchestrator.distributed.runtime import Event
from orchestrator.runs import events
from orchestrator.runs.events import DRIVER_KINDS, WORKER_KINDS, EventLog
from orchestrator.runs.goodput import goodput, last_recovery
from orchestrator.storage.store import Storage


def event(time: float, kind: str, **fields: object) -> dict:
    return {"time": time, "kind": kind, **fields}


def save(time: float, step: int, training_seconds: float, seconds: float = 1.0) -> dict:
    return event(time, "checkpoint", step=step, training_seconds=training_seconds, seconds=seconds)


UNBROKEN = [
    event(0, "launch"),
    event(10, "begin", step=0),
    save(61, 50, 50),
    save(112, 100, 100),
    event(112, "end", step=100, training_seconds=100),
]
KILLED = [
    event(0, "launch"),
    event(10, "begin", step=0),
    save(61, 50, 50),
    event(80, "fault"),
    event(80, "restart", number=1),
    event(90, "begin", step=50),
    save(141, 100, 50),
    event(142, "end", step=100, training_seconds=50),
]


def test_unbroken_run_loses_its_start_and_its_saves() -> None:
    found = goodput(UNBROKEN)
    assert (found.wall_seconds, found.lasting_seconds, found.stall_seconds) == (112, 100, 2)
    assert found.recovery_seconds == ()
    assert found.fraction == pytest.approx(100 / 112)


def test_steps_after_the_last_checkpoint_before_a_fault_are_lost() -> None:
    found = goodput(KILLED)
    assert found.lasting_seconds == 50 + 50
    assert found.recovery_seconds == (10,)
    fraction = pytest.approx(100 / 142)
    assert found.metrics() == {"goodput/fraction": fraction, "faults/restarts": 1, "faults/recovery_seconds": 10}


def test_recovery_is_reported_for_a_begin_after_a_fault_and_for_no_other() -> None:
    assert last_recovery(UNBROKEN) is None
    assert last_recovery(KILLED) == 10
    assert last_recovery([event(0, "begin"), event(80, "fault"), event(90, "begin"), event(200, "begin")]) is None
    assert last_recovery([event(5, "fault"), event(9, "begin")]) == 4
    assert last_recovery([]) is None


def test_checkpoint_that_was_skipped_counts_as_lost() -> None:
    events = [event(0, "launch"), event(0, "begin", step=0), save(50, 50, 50), save(100, 100, 100), event(110, "fault")]
    assert goodput([*events, event(120, "begin", step=50)]).lasting_seconds == 50


def test_time_between_a_stop_and_the_next_launch_is_not_lost() -> None:
    stopped = [event(0, "launch"), event(0, "begin", step=0), save(50, 50, 50), event(51, "stop", step=50, signal=15)]
    later = [event(1000, "launch"), event(1001, "begin", step=50), event(1051, "end", step=100, training_seconds=50)]
    found = goodput([*stopped, *later])
    assert found.wall_seconds == 51 + 51
    assert found.lasting_seconds == 100


def test_time_after_a_killed_driver_is_lost() -> None:
    killed = [event(0, "launch"), event(0, "begin", step=0), save(50, 50, 50)]
    later = [event(100, "launch"), event(101, "begin", step=50), event(151, "end", step=100, training_seconds=50)]
    assert goodput([*killed, *later]).wall_seconds == 151


def test_run_without_events_has_no_goodput() -> None:
    assert goodput([]).fraction == 0


@pytest.mark.parametrize("where", ["local", "memory"])
def test_events_come_back_in_order_and_each_process_writes_its_own_kinds(tmp_path: Path, where: str) -> None:
    storage = Storage(str(tmp_path) if where == "local" else f"memory://{tmp_path.name}")
    driver, worker = (EventLog(storage, "runs/tiny", kinds) for kinds in (DRIVER_KINDS, WORKER_KINDS))
    seen: list[dict] = []
    for one in ({"kind": "launch"}, {"kind": "begin", "step": 0}, {"kind": "step", "step": 1}, {"kind": "fault"}):
        worker.and_then(driver.and_then(seen.append))(one)
    assert [one["kind"] for one in driver.read()] == ["launch", "begin", "fault"]
    assert [one["kind"] for one in driver.read("fault", "launch")] == ["launch", "fault"]
    assert [one["kind"] for one in seen] == ["launch", "begin", "step", "fault"]


def test_steps_that_a_rollback_undid_are_lost_and_it_is_no_restart() -> None:
    rolled_back = [
        event(0, "launch"),
        event(10, "begin", step=0),
        save(61, 50, 50),
        save(112, 100, 100),
        event(120, "rollback", step=50),
        event(122, "begin", step=50),
        save(173, 100, 50),
        event(173, "end", step=100, training_seconds=50),
    ]
    found = goodput(rolled_back)
    assert (found.wall_seconds, found.lasting_seconds) == (173, 50 + 50)
    assert found.recovery_seconds == ()


def test_events_keep_their_order_when_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, now = Storage(str(tmp_path)), [1_700_000_000.0]
    monkeypatch.setattr(events.time, "time", lambda: now[0])
    story: list[tuple[frozenset[str], Event]] = [
        (DRIVER_KINDS, {"kind": "launch"}),
        (WORKER_KINDS, {"kind": "begin", "step": 0}),
        (WORKER_KINDS, {"kind": "checkpoint", "step": 50, "training_seconds": 1e-7, "seconds": 0.0}),
        (DRIVER_KINDS, {"kind": "fault", "text": "lost"}),
        (WORKER_KINDS, {"kind": "begin", "step": 50}),
        (WORKER_KINDS, {"kind": "end", "step": 80, "training_seconds": 1e-7}),
    ]
    driver = EventLog(storage, "runs/a", DRIVER_KINDS)
    for kinds, event in story:
        now[0] -= 3600
        log = driver if kinds is DRIVER_KINDS else EventLog(storage, "runs/a", kinds)
        assert log.record(event)
    found = EventLog(storage, "runs/a").read()
    assert [event["kind"] for event in found] == [event["kind"] for _, event in story]
    assert [event["time"] for event in found] == sorted(event["time"] for event in found)
    spent = goodput(found)
    assert 0 < spent.wall_seconds < 60
    assert spent.lasting_seconds == 2e-7
    assert all(0 < seconds < 60 for seconds in spent.recovery_seconds)
