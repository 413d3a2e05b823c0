"""Locks of killed compiles are found and removed, those of living ones and foreign files are left alone."""

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from torch.utils.file_baton import FileBaton

from orchestrator.configuration.groups import StrategyConfig
from orchestrator.distributed import compile_locks
from orchestrator.distributed.compile_locks import (
    IDLE_SECONDS,
    all_folders,
    find_locks,
    own_folder,
    prepare_to_compile,
    remove,
)
from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.distributed.strategy import build_strategy

HOLDER = """
import runpy, sys, time
baton = runpy.run_path(sys.argv[1])["FileBaton"](sys.argv[2])
assert baton.try_acquire()
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of extensions that this process compiles in, on a disk of this machine."""
    monkeypatch.setattr(compile_locks, "_file_system", lambda place: "ext4")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return tmp_path / "extensions"


@pytest.fixture
def on_a_shared_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_locks, "_file_system", lambda place: "nfs4")


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


def test_lock_is_at_work_while_its_process_lives_and_stale_once_it_is_killed(folder: Path) -> None:
    path = folder / "cpu_adam" / "lock"
    path.parent.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, inspect.getfile(FileBaton), str(path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        assert [lock.owner for lock in find_locks([folder])] == ["at work"]
        process.send_signal(signal.SIGKILL)
    assert [(lock.path, lock.is_stale) for lock in find_locks([folder])] == [(path, True)]


@pytest.mark.parametrize("others", [(), ("build.ninja", "cpu_adam.o")])
def test_stale_lock_is_removed_and_nothing_else(folder: Path, others: tuple[str, ...]) -> None:
    path = left_behind(folder, *others)
    (lock,) = find_locks([folder])
    assert remove(lock)
    assert {place.name for place in path.parent.iterdir()} == set(others)
    assert not remove(lock)


def test_lock_that_was_taken_anew_is_not_removed(folder: Path) -> None:
    path = left_behind(folder)
    (lock,) = find_locks([folder])
    path.rename(folder / "kept")  # so that its inode is not given to the next
    path.touch()
    assert not remove(lock)
    assert path.exists()


@pytest.mark.parametrize("content", ["something in it", None])
def test_files_called_lock_that_are_not_torchs_are_left_alone(folder: Path, content: str | None) -> None:
    path = left_behind(folder, *([] if content else ["package.json"]))
    path.write_text(content or "")
    assert find_locks([folder]) == []


def test_kind_of_disk_is_that_of_the_innermost_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        SimpleNamespace(mountpoint=at, fstype=kind) for at, kind in (("/", "ext4"), ("/h", "xfs"), ("/home", "nfs4"))
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    assert [compile_locks._file_system(place) for place in ("/home/me/lock", "/homes/lock")] == ["nfs4", "ext4"]


@pytest.mark.usefixtures("on_a_shared_disk")
def test_lock_on_a_shared_disk_is_stale_only_after_nothing_has_changed_for_long(folder: Path) -> None:
    path = left_behind(folder, "build.ninja")
    assert [lock.owner for lock in find_locks([folder])] == ["unknown"]
    aged(path, IDLE_SECONDS + 5)
    assert [lock.owner for lock in find_locks([folder])] == ["gone"]
    (path.parent / "cpu_adam.o").touch()
    assert [lock.owner for lock in find_locks([folder])] == ["unknown"]


def test_lock_is_not_stale_while_ninja_outlives_who_took_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_behind(folder)
    aged(path, IDLE_SECONDS + 5)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd=path.parent)
    try:
        assert [lock.owner for lock in find_locks([folder])] == ["gone"]
        monkeypatch.setattr(psutil.Process, "name", lambda self: "ninja" if self.pid == process.pid else "other")
        assert [lock.owner for lock in find_locks([folder])] == ["unknown"]
    finally:
        process.kill()
        process.wait()


def test_compiles_go_to_a_folder_of_versions_and_host_unless_the_user_set_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare_to_compile(print)
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(folder)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    prepare_to_compile(print)
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(own_folder())
    assert own_folder().is_relative_to(tmp_path / "cache" / "gpt-orchestrator")
    assert "deepspeed0." in own_folder().name


def test_locks_are_looked_for_in_the_users_folder_in_ours_and_in_torchs_own(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    places = [folder, cache / "gpt-orchestrator" / "torch_extensions" / "old", cache / "torch_extensions" / "py311_cpu"]
    left = [left_behind(place) for place in places]
    assert [lock.path for lock in find_locks(all_folders())] == left


@pytest.mark.usefixtures("on_a_shared_disk")
def test_compile_waits_for_an_owner_that_may_live_and_goes_on_once_it_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = left_behind(folder), []
    polls = iter([lambda: None, path.unlink])
    monkeypatch.setattr(compile_locks.time, "sleep", lambda seconds: next(polls)())
    prepare_to_compile(said.append)
    assert said == [f"waiting for a compile that may still be at work: {path}"]


@pytest.mark.usefixtures("on_a_shared_disk")
def test_compile_goes_on_once_the_owner_must_be_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said = left_behind(folder), []
    monkeypatch.setattr(compile_locks.time, "sleep", lambda seconds: aged(path, IDLE_SECONDS + 5))
    prepare_to_compile(said.append)
    assert [line.split(":")[0] for line in said] == [
        "waiting for a compile that may still be at work",
        "removed the lock of a compile that was killed",
    ]
    assert not path.exists()


@pytest.mark.parametrize(("name", "left"), [("zero2", False), ("zero3_offload", False), ("ddp", True)])
def test_every_strategy_of_deepspeed_starts_without_stale_locks_and_says_so(
    name: str, left: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    path = left_behind(folder, "build.ninja")
    told: list[Event] = []
    emit: Callable[[Event], None] = told.append
    build_strategy(StrategyConfig.model_validate({"name": name}), Runtime(emit=emit), 1.0)
    assert path.exists() == left
    said = {"kind": "note", "text": f"removed the lock of a compile that was killed: {path}"}
    assert told == ([] if left else [said])
