"""Chunks of remote files in a folder of this machine, which processes and runs share, up to a number of bytes.

A chunk is a file of its own that appears whole and is never changed. What was used longest ago is removed first; what
a process has mapped is locked, and stays. A process that still reads a removed chunk is not disturbed.
"""

import fcntl
import logging
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from orchestrator.storage.errors import explain, is_full
from orchestrator.storage.local import locked

log = logging.getLogger(__name__)
FILLED_AGAIN = 0.9
"""Share of the bound that is left after a removal, so that not every new chunk looks through the whole folder."""
_TOUCHED_SECONDS = 2
"""A chunk that was noted as used this short a time ago is not noted again."""
_TOTAL = ".bytes"
"""Holds the number of bytes in the folder; counted anew at each removal."""


class _Kept(NamedTuple):
    used_ns: int
    num_bytes: int
    path: str


class ChunkCache:
    """A folder of chunks with a bound."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Set the folder, which need not be there yet.

        Args:
            folder: Holds nothing but chunks.
            max_bytes: The bound; half of the disk if that is smaller.
        """
        self.folder, self._max_bytes = folder, max_bytes

    @property
    def max_bytes(self) -> int:
        """Bytes that the folder holds at most."""
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            return min(self._max_bytes, shutil.disk_usage(self.folder).total // 2)

    def mapped(self, path: Path) -> tuple[np.ndarray, os.stat_result] | None:
        """Return the content of a chunk, uint8, which stays as long as the array is held, and the state of its file.

        None if it is not there.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            with suppress(OSError):  # some network file systems have no locks, and a folder may be for reading alone
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            state = os.fstat(descriptor)
            if not state.st_size:  # the machine has lost power while it was written
                path.unlink(missing_ok=True)
                return None
            # the map keeps the descriptor, and so the lock, until it is closed
            content = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        _touch(path, state)
        return np.frombuffer(content, dtype=np.uint8), state

    def put(self, chunks: Mapping[Path, bytes], needed: Callable[[], Collection[Path]]) -> None:
        """Add chunks, and remove others where there is no room.

        Args:
            chunks: Content of each by its path in the folder.
            needed: Returns the chunks that are not removed.

        Raises:
            StorageError: the folder cannot be written, or the disk is full.
        """
        with explained(self.folder), self.room(sum(map(len, chunks.values())), needed):
            try:
                _write(chunks)
            except OSError as error:
                if not is_full(error):
                    raise
                self._remove(self._kept(), 0, needed)
                _write(chunks)

    @contextmanager
    def room(self, num_bytes: int, needed: Callable[[], Collection[Path]]) -> Iterator[None]:
        """Hold the folder locked, with room for so many bytes, which are then counted as written."""
        limit = self.max_bytes
        with locked(self.folder):
            total = self._total()
            if total + num_bytes > limit:
                total = self._remove(self._kept(), max(0, int(FILLED_AGAIN * limit) - num_bytes), needed)
                if total + num_bytes > limit:
                    _warn(str(self.folder), limit)
            yield
            (self.folder / _TOTAL).write_text(str(total + num_bytes))

    def _total(self) -> int:
        try:
            return int((self.folder / _TOTAL).read_text())
        except (FileNotFoundError, ValueError):
            return sum(kept.num_bytes for kept in self._kept())

    def _kept(self) -> list[_Kept]:
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                with suppress(FileNotFoundError):
                    state = os.stat(path)
                    found.append(_Kept(state.st_mtime_ns, state.st_size, path))
        return sorted(found)

    def _remove(self, kept: list[_Kept], wanted_bytes: int, needed: Callable[[], Collection[Path]]) -> int:
        """Remove what was used longest ago until `wanted_bytes` are left, and return how many are."""
        total = sum(one.num_bytes for one in kept)
        stays = {os.fspath(path) for path in needed()}
        for one in kept:
            if total <= wanted_bytes:
                break
            if one.num_bytes and one.path not in stays and _unlink(one.path):
                total -= one.num_bytes
        return total


def note_used(path: Path) -> bool:
    """Note that a chunk is used now, and return whether it is there."""
    try:
        state = os.stat(path)
    except OSError:  # it was removed, or cannot be read, of which its reader tells
        return False
    _touch(path, state)
    return True


def _touch(path: Path, state: os.stat_result) -> None:
    if time.time() - state.st_mtime > _TOUCHED_SECONDS:
        with suppress(OSError):  # it was removed, or the folder is for reading alone
            os.utime(path)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Name the setting in an error of the disk."""
    try:
        yield
    except OSError as error:
        raise explain(error, "write", str(path), setting="storage.cache_dir") from None


def _write(chunks: Mapping[Path, bytes]) -> None:
    for path, content in chunks.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _unlink(path: str) -> bool:
    """Remove a chunk unless a process has it mapped."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here; who reads it goes on
        pass
    finally:
        os.close(descriptor)
    with suppress(FileNotFoundError):
        os.unlink(path)
    return True


@cache
def _warn(folder: str, limit: int) -> None:
    log.warning(
        "%s holds more than its bound of %.3g GB, because all of it is in use; raise storage.cache_bytes",
        folder,
        limit / 1e9,
    )
