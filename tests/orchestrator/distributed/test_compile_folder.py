"""Locks of killed compiles are found and removed, those of living ones and foreign files are left alone."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from modules.config import OptimizerConfig
from orchestrator.configuration.groups import StrategyConfig
from orchestrator.distributed import compile_folder
from orchestrator.distributed.compile_folder import (
    FOLDER_VARIABLE,
    IDLE_SECONDS,
    own_folder,
    prepare_to_compile,
    stale_locks,
)
from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.distributed.strategy import build_strategy

COMPILE = """
import sys, time
from orchestrator.distributed.compile_folder import prepare_to_compile
prepare_to_compile(print)
open(sys.argv[1], "x")
print("at work", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the test compile as a process does that has held no folder yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # set first, so that what the test's calls put there is undone
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setattr(compile_folder, "held", {})
    monkeypatch.setattr(compile_folder, "POLL_SECONDS", 0.01)
    yield
    for file in compile_folder.held.values():
        file.close()


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "extensions"))
    return tmp_path / "extensions"


def left_behind(folder: Path, *others: str) -> Path:
    """Take a lock as torch does, and leave it as a killed process would."""
    extension = folder / "cpu_adam"
    extension.mkdir(parents=True)
    for other in others:
        (extension / other).write_text("something")
    baton = FileBaton(str(extension / "lock"))
    assert baton.try_acquire()
    assert baton.fd is not None
    os.close(baton.fd)
    return extension / "lock"


def aged(path: Path, seconds: float) -> None:
    for place in (*path.parent.iterdir(), path.parent):
        os.utime(place, (time.time() - seconds,) * 2)


def said_on_preparing() -> list[str]:
    said: list[str] = []
    prepare_to_compile(said.append)
    return said


@contextmanager
def compiling(lock: Path) -> Iterator[subprocess.Popen]:
    """Run a process of ours that has prepared to compile, and has taken the lock if nobody else had."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", COMPILE, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "at work\n"
            yield process
        finally:
            process.kill()


def test_lock_is_left_alone_while_its_process_lives_and_removed_once_it_is_killed() -> None:
    lock = own_folder() / "cpu_adam" / "lock"
    with compiling(lock) as process:
        assert stale_locks(own_folder()) == []
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert said_on_preparing() == [f"removed the lock of a compile that was killed: {lock}"]
    assert not lock.exists()


def test_lock_is_left_alone_while_any_other_process_of_ours_may_have_taken_it() -> None:
    with compiling(own_folder() / "other" / "lock"):
        lock = left_behind(own_folder())
        assert stale_locks(own_folder()) == []
        aged(lock, IDLE_SECONDS + 5)
        assert stale_locks(own_folder()) == [lock]


def test_this_process_keeps_others_from_removing_locks_once_it_has_prepared() -> None:
    prepare_to_compile(print)
    left_behind(own_folder())
    assert stale_locks(own_folder()) == []


def test_lock_that_may_be_in_use_is_waited_for_until_nothing_changes_any_more(users_folder: Path) -> None:
    path = left_behind(users_folder)
    said: list[str] = []

    def notify(line: str) -> None:
        said.append(line)
        aged(path, IDLE_SECONDS + 5) if path.exists() else None

    prepare_to_compile(notify)
    assert said == [
        f"waiting for a compile that may still be running: {path}",
        f"removed the lock of a compile that was killed: {path}",
    ]


@pytest.mark.parametrize("others", [(), ("build.ninja", "cpu_adam.o")])
def test_stale_lock_is_removed_and_nothing_else(others: tuple[str, ...]) -> None:
    path = left_behind(own_folder(), *others)
    assert said_on_preparing() == [f"removed the lock of a compile that was killed: {path}"]
    assert {place.name for place in path.parent.iterdir()} == set(others)


@pytest.mark.parametrize("content", ["something in it", None])
def test_files_called_lock_that_are_not_torchs_are_left_alone(users_folder: Path, content: str | None) -> None:
    path = left_behind(users_folder, *([] if content else ["package.json"]))
    path.write_text(content or "")
    aged(path, IDLE_SECONDS + 5)
    assert stale_locks(users_folder) == []


def test_lock_in_the_users_folder_is_stale_only_after_nothing_has_changed_for_long(users_folder: Path) -> None:
    path = left_behind(users_folder, "build.ninja")
    assert stale_locks(users_folder) == []
    aged(path, IDLE_SECONDS + 5)
    assert stale_locks(users_folder) == [path]
    (path.parent / "cpu_adam.o").touch()
    assert stale_locks(users_folder) == []


def test_only_age_counts_where_the_file_system_has_no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(compile_folder.fcntl, "flock", refuse)
    path = left_behind(own_folder())
    assert stale_locks(own_folder()) == []
    aged(path, IDLE_SECONDS + 5)
    assert stale_locks(own_folder()) == [path]


def test_folder_that_cannot_be_written_is_no_obstacle(users_folder: Path) -> None:
    users_folder.write_text("not even a folder")
    assert said_on_preparing() == []


def test_compiles_go_to_a_folder_of_versions_and_host_unless_the_user_set_one(
    users_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare_to_compile(print)
    assert os.environ[FOLDER_VARIABLE] == str(users_folder)
    monkeypatch.delenv(FOLDER_VARIABLE)
    prepare_to_compile(print)
    assert os.environ[FOLDER_VARIABLE] == str(own_folder())
    assert own_folder().is_relative_to(tmp_path / "cache" / "gpt-orchestrator")
    assert "deepspeed0." in own_folder().name


@pytest.mark.parametrize(("name", "left"), [("zero2", False), ("zero3_offload", False), ("ddp", True)])
def test_every_strategy_of_deepspeed_starts_without_stale_locks_and_says_so(
    name: str, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    path = left_behind(own_folder(), "build.ninja")
    told: list[Event] = []
    emit: Callable[[Event], None] = told.append
    build_strategy(StrategyConfig.model_validate({"name": name}), Runtime(emit=emit), OptimizerConfig(), "32")
    assert path.exists() == left
    said = {"kind": "note", "text": f"removed the lock of a compile that was killed: {path}"}
    assert told == ([] if left else [said])
