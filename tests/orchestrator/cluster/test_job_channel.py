"""The channel between the processes that torchrun has started: a job, an exit code, and who is missing."""

import base64
import json
import os
import pickle
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.attempt import Attempt
from orchestrator.cluster.job_channel import JobChannel
from orchestrator.cluster.job_data import data_of_job, job_of_data
from orchestrator.configuration.commands import FinetuneConfig, PretrainConfig
from orchestrator.errors import ConfigError, MachineError, StoppedError
from orchestrator.runs.run import Job, Run
from orchestrator.training.finetuning import TaskExamples
from orchestrator.training.pretraining import PreparedText

CONFIG = PretrainConfig.model_validate({"optimizer": {"betas": [0.9, 0.9]}, "checkpoint": {"interval": "auto"}})
JOB = Job(
    CONFIG,
    Run("a", {"training": {"num_steps": 7}, "seed": 1}, "0a1b"),
    Attempt("a", 3, "c4f3"),
    PreparedText("data/b", CONFIG),
    driver_has_wandb_key=True,
)


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


@dataclass
class Canary:
    """Makes a file when it is unpickled."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.path),)


def written(message: str | bytes) -> Any:
    """Return what rank 1 gets if this lies where rank 0 writes its message."""
    channel = JobChannel(0, 2, 10)
    channel._store.set("message", message)
    thread, got = received()
    thread.join()
    del channel
    return got[0]


def test_pickle_on_the_channel_runs_no_code(tmp_path: Path) -> None:
    trace = tmp_path / "was-unpickled"
    canary = pickle.dumps(Canary(trace))
    pickle.loads(canary)
    trace.unlink()  # it does what it is for
    for planted in (canary, base64.b64encode(canary), json.dumps({"job": base64.b64encode(canary).decode()})):
        end = written(planted)
        assert isinstance(end, MachineError)
        assert "lies no message of rank 0 of this version" in str(end)
        assert not trace.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("attempt"),
        lambda data: data.update(command="doctor"),
        lambda data: data.update(config=[]),
        lambda data: data["config"].update(unknown=1),
        lambda data: data["config"]["training"].update(num_steps=-1),
        lambda data: data["run"].update(name=7),
        lambda data: data.update(objective="x"),
    ],
)
def test_what_is_no_job_is_refused_in_one_line(change: Callable[[dict[str, Any]], object]) -> None:
    data = data_of_job(JOB)
    change(data)
    end = written(json.dumps({"job": data, "meeting_port": None}))
    assert isinstance(end, MachineError)
    assert "\n" not in str(end)


@pytest.mark.parametrize("message", ["7", "[]", "{}", '{"exit_code": "0"}', '{"exit_code": 1e9}', '{"job": {}}'])
def test_what_is_no_message_is_refused(message: str) -> None:
    assert isinstance(written(message), MachineError)


def test_job_of_a_fine_tuning_with_adapters_arrives_as_it_was() -> None:
    settings = {"model": {"path": "m", "lora": {"rank": 4}}, "data": {"source": "files", "path": "x.jsonl"}}
    config = FinetuneConfig.model_validate({"task": {"name": "classification", "labels": ["a", "b"]}, **settings})
    job = Job(config, JOB.run, JOB.attempt, TaskExamples("data/c", config))
    assert job_of_data(json.loads(json.dumps(data_of_job(job)))) == job
