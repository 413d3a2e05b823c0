"""Where extensions are compiled, and the locks there that killed compiles leave behind.

torch takes `<folder>/<extension>/lock` by creating it and removes it at the end (torch 2.13.0, `utils/file_baton.py`);
each later compile waits for it, for ever if its owner was killed. So each process of ours that may compile holds a
shared `flock` on a file in the folder for its life: a process that gets it exclusively knows that no owner is left.
"""

import fcntl
import importlib.metadata
import os
import platform
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from orchestrator.storage.local import cache_folder

FOLDER_VARIABLE = "TORCH_EXTENSIONS_DIR"
FLOCK_FILE = "orchestrator_in_use"
IDLE_SECONDS = 300
"""A compile that has changed nothing in its folder for this long is over: no source of DeepSpeed's takes a compiler
longer."""
POLL_SECONDS = 1.0
held: dict[Path, IO[str]] = {}
"""Open files, each with the shared flock of its folder; they are closed when the process ends."""


def own_folder() -> Path:
    """Return where this machine's runs keep compiled extensions, if the user has not chosen a place.

    By versions, because torch takes an extension that was compiled for another torch for its own; by host, because a
    home folder may be shared by machines with other processors.
    """
    versions = "-".join(f"{name}{importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
    python = "python" + ".".join(platform.python_version_tuple()[:2])
    return cache_folder() / "torch_extensions" / f"{socket.gethostname()}-{python}-{versions}"


def prepare_to_compile(notify: Callable[[str], None]) -> None:
    """Let this process compile extensions in a folder of ours, unless the user set one, without stale locks.

    Wait for a compile that may still be running: torch would wait as well, but never give up.

    Args:
        notify: Takes one line about each lock that was removed, and one when this waits.
    """
    folder = Path(os.environ.setdefault(FOLDER_VARIABLE, str(own_folder())))
    if folder in held:
        return
    with suppress(OSError):  # the user's folder may be read-only, or on a file system without flock
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder, notify)
        if running := _torch_locks(folder):
            notify(f"waiting for a compile that may still be running: {running[0]}")
        while _torch_locks(folder):
            time.sleep(POLL_SECONDS)
            _remove_stale(folder, notify)
        held[folder] = (folder / FLOCK_FILE).open("a")
        fcntl.flock(held[folder], fcntl.LOCK_SH)


def stale_locks(folder: Path, remove: bool = False) -> list[Path]:
    """Return the locks whose owners are gone, and remove them if requested; no process of ours takes one meanwhile.

    In a folder of ours that no other process of ours uses, every lock is stale. Otherwise a lock is stale when nothing
    beside it has changed for `IDLE_SECONDS`.
    """
    with ExitStack() as stack:
        is_alone = False
        with suppress(OSError):
            file = stack.enter_context((folder / FLOCK_FILE).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_alone = folder == own_folder()
        stale = [path for path in _torch_locks(folder) if is_alone or _idle_seconds(path) > IDLE_SECONDS]
        for path in stale if remove else []:
            path.unlink(missing_ok=True)
    return stale


def _remove_stale(folder: Path, notify: Callable[[str], None]) -> None:
    for path in stale_locks(folder, remove=True):
        notify(f"removed the lock of a compile that was killed: {path}")


def _torch_locks(folder: Path) -> list[Path]:
    """Return the files that are torch's locks beyond doubt: a folder that the user set may hold other things."""
    return [path for path in sorted(folder.glob("*/lock")) if _is_torch_lock(path)]


def _is_torch_lock(path: Path) -> bool:
    try:
        files = list(path.parent.iterdir())
        is_empty = path.is_file() and path.stat().st_size == 0
    except FileNotFoundError:  # the compile has just ended
        return False
    return is_empty and (files == [path] or path.with_name("build.ninja") in files)


def _idle_seconds(path: Path) -> float:
    """Return how long nothing beside a lock has changed."""
    changed = [path.parent.stat().st_mtime]
    for place in path.parent.iterdir():
        with suppress(FileNotFoundError):
            changed.append(place.lstat().st_mtime)
    return time.time() - max(changed)
