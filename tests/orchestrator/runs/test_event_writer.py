"""Rank 0's events: no step waits for the store, and a run of any age has few files of them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from store_requests import counted_store, store_requests
from waiting import eventually

from orchestrator.errors import StorageError
from orchestrator.runs import event_files, events
from orchestrator.runs.event_files import MERGED_FILES, EventFiles
from orchestrator.runs.event_writer import EventWriter
from orchestrator.runs.events import DRIVER_KINDS, EventLog
from orchestrator.runs.goodput import goodput
from orchestrator.storage.store import Storage

RUN, FOLDER = "runs/a", "runs/a/events"
BEGIN = {"kind": "begin", "step": 0}
SAVES = 10


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"memory://{tmp_path.name}")


def writer(storage: Storage, **settings: Any) -> EventWriter:
    return EventWriter(EventFiles(storage, FOLDER), **settings)


def kinds(storage: Storage) -> list[str]:
    return [event["kind"] for event in EventLog(storage, RUN).read()]


def save(step: int) -> dict[str, Any]:
    return {"kind": "checkpoint", "step": step, "seconds": 1.0, "training_seconds": float(step)}


@contextmanager
def stopped_store() -> Iterator[threading.Event]:
    """A store in which no request ends before the event is set."""
    answers = threading.Event()
    run = Storage._run

    def waiting(*arguments: Any) -> Any:
        assert answers.wait(60)
        return run(*arguments)

    with patch.object(Storage, "_run", waiting):
        yield answers


def test_no_step_waits_for_a_store_that_does_not_answer(storage: Storage) -> None:
    EventLog(storage, RUN).record({"kind": "fault", "text": ""})
    with stopped_store() as answers, writer(storage) as log:
        for event in (BEGIN, save(10), {"kind": "skip", "step": 12}, save(20)):
            log.record(event)
        assert log.so_far() is None
        answers.set()
        assert eventually(lambda: len(storage.list(FOLDER)) == 2)
        assert [event["kind"] for event in log.so_far() or ()] == kinds(storage)
    # what had happened meanwhile is one file
    assert kinds(storage) == ["fault", "begin", "checkpoint", "skip", "checkpoint"]


def test_recorded_events_are_known_without_a_request(storage: Storage) -> None:
    EventLog(storage, RUN).record({"kind": "fault", "text": ""})
    with writer(storage) as log:
        assert eventually(lambda: log.so_far() is not None)
        log.record(BEGIN)
        assert eventually(lambda: len(storage.list(FOLDER)) == 2)
        with store_requests() as requests:
            found = log.so_far() or []
        assert ([event["kind"] for event in found], requests) == (["fault", "begin"], [])
    assert found == EventLog(storage, RUN).read()


def test_failed_write_is_tried_again(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    broken = patch.object(Storage, "write_bytes", side_effect=StorageError("no space left"))
    with writer(storage, retry_seconds=0.01) as log:
        with broken:
            log.record(BEGIN)
            assert eventually(lambda: "no space left" in caplog.text)
        assert eventually(lambda: kinds(storage) == ["begin"])


def test_events_follow_those_of_earlier_processes_when_the_clock_is_set_back(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_700_000_000.0]
    monkeypatch.setattr(events.time, "time", lambda: now[0])
    for kind in ("launch", "fault"):
        EventLog(storage, RUN).record({"kind": kind})
        now[0] -= 3600
        with writer(storage) as log:
            log.record(BEGIN)
            log.record(save(10))
        now[0] -= 3600
    assert kinds(storage) == ["launch", "begin", "checkpoint", "fault", "begin", "checkpoint"]


def attempt(storage: Storage, number: int) -> None:
    """Everything that is asked of the events in an attempt of a run with `interval=auto` that ends with a fault."""
    driver = EventLog(storage, RUN, DRIVER_KINDS)
    driver.record({"kind": "restart" if number else "launch"})
    with writer(storage) as log:
        log.record({"kind": "begin", "step": number * SAVES})
        assert eventually(lambda: log.so_far() is not None)
        for step in range(number * SAVES, (number + 1) * SAVES):
            log.record(save(step))
    driver.record({"kind": "fault", "text": ""})


def test_requests_do_not_grow_with_the_age_of_a_run(storage: Storage) -> None:
    requests, reading = [], []
    for number in range(24):
        with counted_store() as count:
            attempt(storage, number)
        requests.append(count["requests"])
        with counted_store() as count:
            found = EventLog(storage, RUN).read()
        reading.append(count["requests"])
        assert len(found) == (number + 1) * (SAVES + 3)
    # the first attempts have no files to merge; later on there are two levels
    assert max(requests[12:]) <= max(requests[:12]) + MERGED_FILES
    assert max(reading) <= 3 * MERGED_FILES
    assert goodput(found).lasting_seconds > 0


def test_at_the_end_all_events_are_in_one_file(storage: Storage) -> None:
    with writer(storage) as log:
        log.record(BEGIN)
        assert eventually(lambda: log.so_far() is not None)
        EventLog(storage, RUN).record({"kind": "resize", "from": 2, "to": 1})
        log.record({"kind": "end", "step": 1})
        assert [event["kind"] for event in log.all()] == ["begin", "resize", "end"]
        assert len(storage.list(FOLDER)) == 1
    assert kinds(storage) == ["begin", "resize", "end"]


def test_file_that_is_merged_while_it_is_read_is_found_in_the_merged_one(storage: Storage) -> None:
    for number in range(3):
        EventLog(storage, RUN).record({"kind": "fault", "number": number})
    before = storage.list(FOLDER)
    files = EventFiles(storage, FOLDER)
    files.refresh()
    files.merge(into_one=True)
    listings = iter([before])
    list_now = Storage.list
    with patch.object(Storage, "list", lambda self, *names: next(listings, None) or list_now(self, *names)):
        found = EventLog(storage, RUN).read()
    assert [event["number"] for event in found] == [0, 1, 2]


def test_merge_that_was_interrupted_before_the_old_files_were_removed_counts_no_event_twice(storage: Storage) -> None:
    for _ in range(MERGED_FILES):
        EventLog(storage, RUN).record({"kind": "fault", "text": ""})
    files = EventFiles(storage, FOLDER)
    files.refresh()
    with patch.object(Storage, "remove", side_effect=StorageError("killed")), pytest.raises(StorageError):
        files.merge()
    assert len(storage.list(FOLDER)) == MERGED_FILES + 1
    assert kinds(storage) == ["fault"] * MERGED_FILES
    again = EventFiles(storage, FOLDER)
    again.refresh()
    again.merge()
    assert kinds(storage) == ["fault"] * MERGED_FILES


def test_damaged_event_is_neither_merged_nor_removed(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    damaged = f"{1:017d}-begin-0000.json"
    storage.write_bytes(f"{FOLDER}/{damaged}", b"{")
    for _ in range(MERGED_FILES):
        EventLog(storage, RUN).record({"kind": "fault", "text": ""})
    with writer(storage) as log:
        log.record(BEGIN)
    assert damaged in storage.list(FOLDER)
    assert len(storage.list(FOLDER)) <= 3
    assert kinds(storage) == [*["fault"] * MERGED_FILES, "begin"]
    assert event_files.log.name in {record.name for record in caplog.records}
