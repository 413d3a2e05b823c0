"""Where extensions are compiled, and the locks there that killed compiles leave behind.

torch takes `<folder>/<extension>/lock` by creating it and removes it at the end (torch 2.13.0, `utils/file_baton.py`);
each later compile waits for it, for ever if its owner was killed. So each process of ours that may compile holds a
shared `flock` on a file in the folder for its life: who gets it exclusively knows that no owner is left.
"""

import fcntl
import importlib.metadata
import math
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from orchestrator.storage.local import cache_folder

FOLDER_VARIABLE = "TORCH_EXTENSIONS_DIR"
FLOCK_FILE = "orchestrator_in_use"
IDLE_SECONDS = 300
"""In a folder that the user set, programs without our flock may compile: there nothing has changed for so long, too; no
single source of DeepSpeed's takes a compiler longer."""
_held: dict[Path, IO[str]] = {}


def own_folder() -> Path:
    """Return where this machine's runs keep compiled extensions, if the user has not chosen a place.

    By versions, because torch takes an extension that was compiled for another torch for its own; by host, because a
    home folder may be shared by machines with other processors.
    """
    versions = "-".join(f"{name}{importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
    python = "python" + ".".join(platform.python_version_tuple()[:2])
    return cache_folder() / "torch_extensions" / f"{socket.gethostname()}-{python}-{versions}"


def prepare_to_compile(say: Callable[[str], None]) -> None:
    """Let this process compile extensions in a folder of ours, unless the user set one, without stale locks.

    Args:
        say: Takes one line about each lock that was removed.
    """
    folder = Path(os.environ.setdefault(FOLDER_VARIABLE, str(own_folder())))
    if folder in _held:
        return
    with suppress(OSError):  # the user's folder may be read-only, or on a file system without flock
        folder.mkdir(parents=True, exist_ok=True)
        with stale_locks(folder) as stale:
            for path in stale:
                path.unlink(missing_ok=True)
                say(f"removed the lock of a compile that was killed: {path}")
        _held[folder] = (folder / FLOCK_FILE).open("a")
        fcntl.flock(_held[folder], fcntl.LOCK_SH)


@contextmanager
def stale_locks(folder: Path) -> Iterator[list[Path]]:
    """Give the locks whose owners are gone beyond doubt; until the end nobody of ours takes one."""
    found: list[Path] = []
    with ExitStack() as stack:
        with suppress(OSError):
            file = stack.enter_context((folder / FLOCK_FILE).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            idle_seconds = -math.inf if folder == own_folder() else IDLE_SECONDS
            found = [path for path in sorted(folder.glob("*/lock")) if _is_torchs(path, idle_seconds)]
        yield found


def _is_torchs(path: Path, idle_seconds: float) -> bool:
    """Whether nothing beside it has changed for so long, and it is torch's: a user's folder may hold other things."""
    files = list(path.parent.iterdir())
    idle = time.time() - max(place.lstat().st_mtime for place in (*files, path.parent)) > idle_seconds
    empty = path.is_file() and path.stat().st_size == 0
    return idle and empty and (files == [path] or path.with_name("build.ninja") in files)
