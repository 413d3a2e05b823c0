"""Digests of local files, remembered in the cache folder for as long as nothing about a file shows a change."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

import xxhash

from orchestrator.storage.local import cache_folder

_SETTLED_NS = 2 * 10**9
"""A file that was changed this short a time ago may change again without another time of change."""
State = tuple[int, ...]


def known_digest(path: str, opened: Callable[[], BufferedReader]) -> str:
    """Return the xxh3_128 of a local file; its content is read only if its state was not seen before.

    The state is its device, inode and size, and in nanoseconds the times of its last change of content and of inode;
    programs may set the former back, but not the latter.
    """
    state, now = _state(path), time.time_ns()
    record = cache_folder() / "digests" / xxhash.xxh3_128_hexdigest(path.encode(errors="surrogateescape"))
    if known := _read(record, state):
        return known
    with opened() as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    if max(state[-2:]) < now - _SETTLED_NS and _state(path) == state:
        with suppress(OSError):  # without a record it is read again the next time
            _write(record, state, digest)
    return digest


def _state(path: str) -> State:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(record: Path, state: State) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):  # there is none, or a machine that lost power has torn it
        found = json.loads(record.read_bytes())
        if found["state"] == list(state):
            return str(found["xxh3_128"])
    return None


def _write(record: Path, state: State, digest: str) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_name(f".{record.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(json.dumps({"state": list(state), "xxh3_128": digest}))
    os.replace(temporary, record)
