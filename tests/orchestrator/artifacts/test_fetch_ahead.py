"""What is read next is fetched by few threads, and by none where it is there already."""

import threading
from collections.abc import Callable

import pytest
from waiting import eventually

from orchestrator.artifacts.fetch_ahead import FetchAhead

KEYS, MOST = 200, 40


class Threads:
    """Fetches nothing, and counts the threads that are started for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_there: Callable[[int], bool]) -> None:
        self.started, self.fetched = 0, list[int]()
        start = threading.Thread.start

        def counted(thread: threading.Thread) -> None:
            self.started += thread.name == "fetch-ahead"
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", counted)
        self.ahead: FetchAhead[int] = FetchAhead(self.fetched.append, is_there, lambda key: 1, MOST)

    def read_all(self) -> None:
        """Read the keys of a plan, each when no thread has anything to do."""
        self.ahead.plan(self, range(KEYS))
        for key in range(KEYS):
            assert eventually(lambda: "fetch-ahead" not in [thread.name for thread in threading.enumerate()])
            assert key in self.ahead.planned()
            self.ahead.used(key)


def test_no_thread_is_started_for_each_key_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(monkeypatch, lambda key: True)
    threads.read_all()
    assert threads.fetched == []
    assert threads.started <= KEYS // (MOST // 4) + 1  # one whenever a quarter is free


def test_each_key_that_is_not_there_is_fetched_once_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(monkeypatch, lambda key: key % 3 > 0)
    threads.read_all()
    assert sorted(threads.fetched) == [*range(0, KEYS, 3)]
