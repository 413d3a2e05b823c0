"""The channel between the processes that torchrun has started: a job, an exit code, and who is missing."""

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.cluster.job_channel import JobChannel
from orchestrator.errors import ConfigError, MachineError, StoppedError

JOB: Any = {"the": "job"}


@pytest.fixture(autouse=True)
def place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def received(limit_seconds: float = 10) -> tuple[threading.Thread, list[Any]]:
    """Return a thread that waits as rank 1, and what it gets: a job, or the exception."""
    got: list[Any] = []

    def wait() -> None:
        try:
            got.append(JobChannel(1, 2, limit_seconds).receive())
        except BaseException as error:
            got.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, got


def driven(drive: Callable[[JobChannel], None]) -> Any:
    """Return what rank 1 gets while rank 0 does `drive`."""
    channel = JobChannel(0, 2, 10)
    thread, got = received()
    try:
        with channel.driven():
            drive(channel)
    except BaseException:
        pass
    thread.join()
    return got[0]


def raises(error: BaseException) -> Callable[[JobChannel], None]:
    def drive(_: JobChannel) -> None:
        raise error

    return drive


def test_the_others_get_the_job_of_rank_0() -> None:
    assert driven(lambda channel: channel.send(JOB)) == JOB


@pytest.mark.parametrize(
    ("drive", "code"),
    [
        (lambda channel: None, 0),  # a complete run is only shown
        (raises(ConfigError("no such data")), 2),
        (raises(RuntimeError("broken")), 1),
        (raises(StoppedError(15, 3)), 143),
        (raises(SystemExit(143)), 143),
        (raises(KeyboardInterrupt()), 130),
    ],
)
def test_the_others_end_with_the_exit_code_of_rank_0(drive: Callable[[JobChannel], None], code: int) -> None:
    end = driven(drive)
    assert isinstance(end, SystemExit)
    assert end.code == code


def test_rank_0_names_the_processes_that_did_not_come() -> None:
    channel = JobChannel(0, 4, limit_seconds=0.3)
    JobChannel(2, 4, 10)
    with pytest.raises(MachineError, match=r"2 of 4 processes did not come to 127.*0\.3: rank 1, 3; look at"):
        channel.send(JOB)


def test_silence_of_rank_0_ends_the_wait_with_its_address() -> None:
    silent = JobChannel(0, 2, 10)
    thread, got = received(limit_seconds=0.3)
    thread.join()
    assert isinstance(got[0], MachineError)
    assert "rank 1 gets no sign of life from rank 0 at 127.0.0.1:" in str(got[0])
    del silent


def test_rank_0_that_prepares_data_for_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.job_channel._BEAT_SECONDS", 0.2)
    channel = JobChannel(0, 2, 10)
    thread, got = received(limit_seconds=1.5)
    with channel.driven():
        threading.Event().wait(3)
        assert got == []
        channel.send(JOB)
    thread.join()
    assert got == [JOB]


def test_nothing_that_answers_at_the_address_is_an_error_with_that_address() -> None:
    thread, got = received(limit_seconds=0.5)
    thread.join()
    assert isinstance(got[0], MachineError)
    assert "MASTER_ADDR and MASTER_PORT can be reached" in str(got[0])
