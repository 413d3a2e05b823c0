"""A worker that hangs says so and ends itself."""

import faulthandler
import os
import threading
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
