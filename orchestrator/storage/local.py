"""Writes on a local disk that are whole or not there at all."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_file(path: Path, data: bytes) -> None:
    """Makes `path` a file that holds `data`, whole and on the disk, or leaves what was there."""
    _replace(path, lambda temporary: temporary.write_bytes(data))


def create_file(path: Path, data: bytes) -> None:
    """Makes `path` a file that holds `data`, whole and on the disk.

    Raises:
        FileExistsError: there is one already.
    """

    def place(temporary: Path) -> None:
        os.link(temporary, path)
        temporary.unlink()

    _replace(path, lambda temporary: temporary.write_bytes(data), place)


def copy_file(source: Path, path: Path) -> None:
    """Makes `path` a copy of `source`, whole and on the disk, or leaves what was there."""
    _replace(path, lambda temporary: shutil.copyfile(source, temporary))


def fill_from_file(path: Path, start: int, buffer: memoryview) -> int:
    """Fills `buffer` from byte `start` of a file on, and returns how many bytes there were."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        filled = 0
        while filled < len(buffer) and (count := file.readinto(buffer[filled:])):
            filled += count
    return filled


def sync(path: Path) -> None:
    """Waits until the file or folder `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, write: Callable[[Path], Any], place: Callable[[Path], Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        sync(temporary)
        (place or (lambda made: os.replace(made, path)))(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def cache_folder() -> Path:
    """Return where this machine keeps copies of remote artifacts."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpt-orchestrator"
