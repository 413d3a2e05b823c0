"""Which chunks of local files are verified: a byte a chunk, in the cache folder, for all processes of this machine."""

import logging
import os
from functools import cache
from pathlib import Path

import xxhash

from orchestrator.artifacts.chunk_digests import ChunkDigests
from orchestrator.storage.local import cache_folder

log = logging.getLogger(__name__)
UNRECORDED_BYTES = 2**18
"""Verifying a file of this size takes no longer than looking up whether it is verified."""
_VERIFIED = b"\x01"


class ChunkRecord:
    """The verified chunks of one file in one state; of this process alone if the cache folder cannot be written."""

    def __init__(self, path: Path | None, num_chunks: int) -> None:
        """Take what the record holds.

        Args:
            path: Of the record; None keeps it in memory.
            num_chunks: Of the file.
        """
        self._path = path
        self._verified = bytearray(self._read(0, num_chunks).ljust(num_chunks, b"\0"))

    @classmethod
    def of(cls, path: Path, state: os.stat_result, digests: ChunkDigests) -> "ChunkRecord":
        """Return the record of a file in this state: another one as soon as its place, size or a time is another."""
        changing = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        text = "\0".join(map(str, (path.absolute(), *changing, digests.entry.xxh3_128, digests.chunk_bytes)))
        is_small = state.st_size <= UNRECORDED_BYTES
        record = None if is_small else cache_folder() / "verified" / xxhash.xxh3_128_hexdigest(text.encode())
        return cls(record, len(digests))

    def has(self, number: int) -> bool:
        """Return whether this process or another one has verified the chunk."""
        if self._verified[number]:
            return True
        self._verified[number] = self._read(number, 1) == _VERIFIED
        return bool(self._verified[number])

    def add(self, number: int) -> None:
        """Record a chunk as verified."""
        self._verified[number] = 1
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, _VERIFIED, number)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._path = None
            _warn(str(cache_folder()), error.strerror)

    def _read(self, start: int, count: int) -> bytes:
        if self._path is None:
            return b""
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except OSError:  # there is none yet, or none that can be read
            return b""
        try:
            return os.pread(descriptor, count, start)
        finally:
            os.close(descriptor)


@cache
def _warn(folder: str, reason: str) -> None:
    log.warning(
        "%s cannot be written (%s): what is verified is not remembered, so each process verifies what it uses; "
        "choose another storage.cache_dir",
        folder,
        reason,
    )
