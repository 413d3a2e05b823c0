"""Files on a local disk, written atomically: whole or not at all."""

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What network and FUSE file systems without hard links answer."""

_CACHE_VARIABLE = "GPT_ORCHESTRATOR_CACHE"


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to the file `path` and sync it to the disk; if that fails, the old file stays."""
    _replace(path, lambda temporary: temporary.write_bytes(data))


def create_file(path: Path, data: bytes) -> None:
    """Write `data` to the new file `path` and sync it to the disk.

    Raises:
        FileExistsError: the file exists already.
    """

    def link(temporary: Path) -> None:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            _create_by_open(path, data)
        temporary.unlink()

    _replace(path, lambda temporary: temporary.write_bytes(data), link)


def _create_by_open(path: Path, data: bytes) -> None:
    """Create the file exclusively where there are no hard links; for a moment others see it empty."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, path: Path) -> None:
    """Copy `source` to `path` and sync it to the disk; if that fails, the old file stays."""
    _replace(path, lambda temporary: shutil.copyfile(source, temporary))


def fill_from_file(path: Path, start: int, buffer: memoryview) -> int:
    """Fill `buffer` from byte `start` of a file, and return the number of bytes read, fewer at the end of the file."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        filled = 0
        while filled < len(buffer) and (count := file.readinto(buffer[filled:])):
            filled += count
    return filled


def sync(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, write: Callable[[Path], Any], move: Callable[[Path], Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        sync(temporary)
        (move or (lambda made: os.replace(made, path)))(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def cache_folder() -> Path:
    """Return where this machine keeps copies of what is in remote stores, and what it has verified."""
    chosen = os.environ.get(_CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpt-orchestrator"


def use_cache_folder(path: str | None) -> None:
    """Choose that folder for this process and those that it starts; None leaves it where it is."""
    if path is not None:
        os.environ[_CACHE_VARIABLE] = os.path.abspath(os.path.expanduser(path))


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a local folder for this process alone, or `shared` with others, as far as its file system knows locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
