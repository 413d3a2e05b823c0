"""A worker that hangs says so and ends itself."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.storage.store import Storage
from orchestrator.training.callbacks.watchdog import EXIT_CODE, Watchdog


class Ended(BaseException):
    """Stands for the end of the process."""


def test_single_worker_that_hangs_ends_with_the_documented_code_and_leaves_its_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    events: list[Event] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    watchdog: Any = Watchdog(Storage(str(tmp_path)), "runs/a", Runtime(emit=events.append), timeout_seconds=0.01)
    watchdog.beat()
    try:
        with pytest.raises(Ended):
            watchdog._watch()
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert codes == [EXIT_CODE]
    (stacks,) = (tmp_path / "runs/a/stacks").iterdir()
    assert "_watch" in stacks.read_text(encoding="utf-8")
    assert [event["kind"] for event in events] == ["hang"]
    assert str(stacks) in events[0]["text"]


@pytest.mark.parametrize(
    "goes_on",
    [
        lambda watchdog: watchdog.on_train_batch_end(None, None),
        lambda watchdog: watchdog.on_exception(None, None, RuntimeError("connection closed by peer")),
    ],
    ids=["its_step", "the_loss_of_the_others"],
)
def test_worker_continued_after_the_timeout_ends_with_stacks_before_anything_else_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: Callable[[Any], None]
) -> None:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(Watchdog, "_watch", lambda _: None)  # has not been scheduled again yet
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    watchdog: Any = Watchdog(Storage(str(tmp_path)), "runs/a", Runtime(), timeout_seconds=0.01)
    watchdog.on_train_start(None, None)
    time.sleep(0.02)
    try:
        with pytest.raises(Ended):
            goes_on(watchdog)
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert codes == [EXIT_CODE]
    assert len(list((tmp_path / "runs/a/stacks").iterdir())) == 1


def test_error_does_not_end_a_worker_while_it_stores_its_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing, stored, done = threading.Event(), threading.Event(), threading.Event()

    def write(self: Storage, name: str, data: bytes) -> None:
        storing.set()
        assert stored.wait(timeout=60)

    def end(code: int) -> None:
        done.set()
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(Storage, "write_bytes", write)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # for `Ended` in the watching thread
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    watchdog: Any = Watchdog(Storage(str(tmp_path)), "runs/a", Runtime(), timeout_seconds=0.01)
    watchdog.on_train_start(None, None)
    assert storing.wait(timeout=60)

    def raise_error() -> None:
        with suppress(Ended):
            watchdog.on_exception(None, None, RuntimeError("connection closed by peer"))
        assert done.is_set()
        left.set()

    left = threading.Event()
    trains = threading.Thread(target=raise_error)
    trains.start()
    try:
        assert not left.wait(timeout=0.2)
        stored.set()
        assert left.wait(timeout=60)
    finally:
        stored.set()
        trains.join()
        faulthandler.cancel_dump_traceback_later()


def test_error_of_a_worker_that_has_not_begun_to_train_is_no_hang(tmp_path: Path) -> None:
    watchdog: Any = Watchdog(Storage(str(tmp_path)), "runs/a", Runtime(), timeout_seconds=0.01)
    watchdog.on_exception(None, None, RuntimeError("damaged data"))
    assert not (tmp_path / "runs").exists()


def test_the_first_step_may_take_the_time_to_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(Watchdog, "_end", lambda _: ended.set())
    watchdog: Any = Watchdog(Storage(str(tmp_path)), "runs/a", Runtime(), timeout_seconds=0.01, compile_seconds=3600)
    watchdog.on_train_start(None, None)
    try:
        assert not ended.wait(timeout=0.2)
        watchdog.on_train_batch_end(None, None)
        assert ended.wait(timeout=60)
    finally:
        watchdog.teardown(None, None, "fit")
