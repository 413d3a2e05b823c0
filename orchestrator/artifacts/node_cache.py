"""Copies of remote files on this machine: each is fetched once, by one process, while the others wait for it.

A copy is complete as soon as it has its final name. It is replaced, never removed, so a process that reads it is not
disturbed. What an interrupted process has fetched is kept, and the next one continues from there.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from orchestrator.artifacts.digests import FileEntry, digest_file
from orchestrator.errors import ArtifactError, StorageError
from orchestrator.storage.errors import NotFoundError, explain
from orchestrator.storage.local import sync
from orchestrator.storage.store import Storage

RANGE_BYTES = 16 * 2**20
"""Bytes of one request."""
_NUM_REQUESTS = 8
"""Requests at a time for one file; its fetch holds this many ranges in memory."""


def fetch_file(storage: Storage, name: str, entry: FileEntry, copy: Path) -> None:
    """Make `copy` the verified content of the file `name`; return at once if it is that already.

    Any number of processes may call this at the same time. Without file locks, as on some network file systems, each
    fetches the file by itself, which costs time and harms nothing.

    Raises:
        ArtifactError: the file is missing or damaged in the store.
        StorageError: the store cannot be read, or the copy not be written.
    """
    with _explained(copy):
        while (seen := _version(copy)) is None or not _holds(copy, entry):
            with _locked_partial(copy) as partial:
                if _version(copy) == seen:
                    _fetch(storage, name, entry, partial, copy)
                    return
                partial.unlink()  # another process has fetched the file while this one waited for the lock


def _holds(copy: Path, entry: FileEntry) -> bool:
    with suppress(FileNotFoundError):  # somebody has just emptied the cache
        return digest_file(copy) == entry
    return False


def _fetch(storage: Storage, name: str, entry: FileEntry, partial: Path, copy: Path) -> None:
    found = _filled(storage, name, entry.num_bytes, partial)
    if found != entry:
        # damaged on the way, or the machine has lost power while the beginning was written
        os.truncate(partial, 0)
        found = _filled(storage, name, entry.num_bytes, partial)
    if found != entry:
        partial.unlink()
        entry.check(found, storage.url(name))
    sync(partial)
    os.replace(partial, copy)
    sync(copy.parent)


def _filled(storage: Storage, name: str, num_bytes: int, partial: Path) -> FileEntry:
    """Append to `partial` what it lacks of the file, and return its size and digest."""
    digest = xxhash.xxh3_128()

    def part(start: int) -> bytes:
        return read_part(storage, name, start, min(start + RANGE_BYTES, num_bytes), num_bytes)

    with open(partial, "r+b") as file, ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        while piece := file.read(RANGE_BYTES):
            digest.update(piece)
        for start in range(file.tell(), num_bytes, _NUM_REQUESTS * RANGE_BYTES):
            stop = min(start + _NUM_REQUESTS * RANGE_BYTES, num_bytes)
            for piece in pool.map(part, range(start, stop, RANGE_BYTES)):
                file.write(piece)
                digest.update(piece)
        return FileEntry(file.tell(), digest.hexdigest())


def read_part(storage: Storage, name: str, start: int, stop: int, num_bytes: int) -> bytes:
    """Return bytes `[start, stop)` of a file.

    Args:
        num_bytes: Its size in the manifest.

    Raises:
        ArtifactError: the file is missing, or has another size.
        StorageError: the store cannot be read.
    """
    try:
        return storage.read_range(name, start, stop)
    except NotFoundError:
        raise ArtifactError(f"{storage.url(name)} is missing") from None
    except StorageError:
        found = storage.num_bytes(name)
        if found == num_bytes:
            raise
        raise ArtifactError(f"{storage.url(name)} has {found} bytes; the manifest says {num_bytes}") from None


def _version(path: Path) -> tuple[int, int] | None:
    """Return what changes when the file is replaced; None if there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


@contextmanager
def _locked_partial(copy: Path) -> Iterator[Path]:
    """Yield the file that is to become `copy`, locked: a lock ends with its process."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f".{copy.name}.partial")
    while True:
        with open(partial, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # no locks here, so the file must be this process's own
                partial = copy.with_name(f".{copy.name}.{uuid.uuid4().hex[:8]}.partial")
                partial.touch()
                yield partial
                return
            if is_at(file.fileno(), partial):
                yield partial
                return


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file still has this path: who held the lock before may have renamed or removed it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


@contextmanager
def _explained(copy: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, "write", str(copy), setting="storage.cache_dir") from None
