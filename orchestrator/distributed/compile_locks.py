"""Locks that killed compiles leave behind: each later compile of the same extension would wait for them for ever.

torch takes `<extensions folder>/<extension>/lock` by creating it, keeps it open while it compiles, and removes it at
the end (torch 2.13.0, `utils/file_baton.py`). Who waits for it looks at nothing but whether the file is there.
"""

import importlib.metadata
import os
import platform
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from orchestrator.storage.local import cache_folder

FOLDER_VARIABLE = "TORCH_EXTENSIONS_DIR"
IDLE_SECONDS = 300
"""Where the owner may be on another machine: nothing in the folder has changed for so long; no single source of
DeepSpeed's takes a compiler longer."""
_POLL_SECONDS = 1.0
_SHARED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "virtiofs", "lustre", "gpfs", "beegfs", "ceph", "gluster", "fuse")

Owner = Literal["at work", "gone", "unknown"]


@dataclass(frozen=True)
class CompileLock:
    """A lock, and what has become of who took it."""

    path: Path
    owner: Owner
    """`unknown`: it may be at work on another machine, or is gone and its compilers are still at work."""
    identity: tuple[int, int]
    """Inode and time of change: a lock that was taken later at the same place is another one."""

    @property
    def is_stale(self) -> bool:
        return self.owner == "gone"


def own_folder() -> Path:
    """Return where this machine's runs keep compiled extensions, if the user has not chosen a place.

    By versions, because torch takes an extension that was compiled for another torch for its own; by host, because a
    home folder may be shared by machines with other processors, and a lock in it by machines that we cannot look into.
    """
    versions = "-".join(f"{name}{importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
    python = "python" + ".".join(platform.python_version_tuple()[:2])
    return _own_root() / f"{socket.gethostname()}-{python}-{versions}"


def all_folders() -> list[Path]:
    """Return every folder in which this machine may have compiled extensions: the user's, ours and torch's own."""
    set_by_user = [Path(os.environ[FOLDER_VARIABLE])] if FOLDER_VARIABLE in os.environ else []
    torchs_own = cache_folder().with_name("torch_extensions")
    folders = [*set_by_user, *_children(_own_root()), *_children(torchs_own), torchs_own]
    return list(dict.fromkeys(folders))


def find_locks(folders: Iterable[Path]) -> list[CompileLock]:
    """Return the compile locks of the extensions in these folders."""
    found = [(path, status) for folder in folders for path, status in _lock_files(folder)]
    if not found:
        return []
    # looked for after the locks: who has taken one keeps it open from then on
    in_use = _paths_in_use()
    return [CompileLock(path, _owner(path, status, in_use), _identity(status)) for path, status in found]


def remove(lock: CompileLock) -> bool:
    """Remove a lock unless it has been taken anew since it was found; return whether that was done."""
    try:
        if _identity(lock.path.lstat()) != lock.identity:
            return False
        lock.path.unlink()
    except FileNotFoundError:
        return False
    return True


def prepare_to_compile(say: Callable[[str], None]) -> None:
    """Let this process compile extensions in a folder of ours, unless the user set one, without stale locks.

    Where somebody else may be at work in it, this waits until they are done or must be gone.

    Args:
        say: Takes one line about each lock that was removed or is waited for.
    """
    folder = Path(os.environ.setdefault(FOLDER_VARIABLE, str(own_folder())))
    waited_for: set[Path] = set()
    while True:
        locks = find_locks([folder])
        for lock in locks:
            if lock.is_stale and remove(lock):
                say(f"removed the lock of a compile that was killed: {lock.path}")
            if lock.owner == "unknown" and lock.path not in waited_for:
                waited_for.add(lock.path)
                say(f"waiting for a compile that may still be at work: {lock.path}")
        if not any(lock.owner == "unknown" for lock in locks):
            return
        time.sleep(_POLL_SECONDS)


def _own_root() -> Path:
    return cache_folder() / "torch_extensions"


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def _lock_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield files that are torch's locks beyond doubt: the folder that a user set may hold other things, too."""
    for path in sorted(folder.glob("*/lock")):
        try:
            status = path.lstat()
            beside = {other.name for other in path.parent.iterdir()} - {"lock"}
        except FileNotFoundError:  # its owner is done
            continue
        is_empty_file = stat.S_ISREG(status.st_mode) and status.st_size == 0
        if is_empty_file and (not beside or "build.ninja" in beside):
            yield path, status


def _owner(path: Path, status: os.stat_result, in_use: set[str]) -> Owner:
    place = os.path.realpath(path)
    if place in in_use:
        return "at work"
    if os.path.dirname(place) in in_use:  # ninja outlives a Python that is killed, and does not remove the lock
        return "unknown"
    was_here = status.st_uid == os.getuid() and not _file_system(place).startswith(_SHARED_FILE_SYSTEMS)
    return "gone" if was_here or _idle_seconds(path.parent) > IDLE_SECONDS else "unknown"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_ctime_ns


def _paths_in_use() -> set[str]:
    """Return the files that some process holds open, and the folders in which ninja is at work."""
    used: set[str] = set()
    for process in psutil.process_iter():
        try:
            used.update(file.path for file in process.open_files())
            if process.name().startswith("ninja"):
                used.add(process.cwd())
        except (psutil.Error, OSError):  # it has ended, or is somebody else's
            continue
    return used


def _file_system(place: str) -> str:
    mounts = [mount for mount in psutil.disk_partitions(all=True) if _is_below(place, mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""


def _is_below(place: str, folder: str) -> bool:
    return place.startswith(folder.rstrip("/") + "/")


def _idle_seconds(folder: Path) -> float:
    changed = [folder.stat().st_mtime]
    for file in folder.iterdir():
        try:
            changed.append(file.lstat().st_mtime)
        except FileNotFoundError:
            continue
    return time.time() - max(changed)
