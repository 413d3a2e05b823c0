"""Files of an artifact in a local folder, memory-mapped: a chunk is verified before its first use on this machine."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from modules.data.number_files import Numbers
from orchestrator.artifacts.chunk_digests import ChunkDigests
from orchestrator.artifacts.chunk_record import ChunkRecord
from orchestrator.artifacts.chunked_numbers import ChunkedNumbers
from orchestrator.artifacts.digests import FileEntry, digest_bytes
from orchestrator.errors import ArtifactError

_MAPPED_FILES = 256
"""Files that are mapped at a time; each takes a file descriptor, of which a process often has 1024."""
_NUM_READERS = 4


class VerifiedFiles:
    """The files of an artifact in a local folder; implements `modules.data.number_files.NumberFiles`."""

    def __init__(self, folder: Path, entries: Mapping[str, FileEntry], remedy: str) -> None:
        """Read nothing yet.

        Args:
            folder: The artifact.
            entries: Those of its manifest.
            remedy: What the user does about a damaged file.
        """
        self._folder, self._entries, self._remedy = folder, entries, remedy
        self._mapped = lru_cache(_MAPPED_FILES)(self._map)

    def open(self, name: str, dtype: np.dtype) -> Numbers:
        """Return the numbers in a file.

        Raises:
            ArtifactError: it is missing, or has not its size.
        """
        return ChunkedNumbers(_File(name, self), self._entry(name).num_bytes, dtype, self._remedy)

    def mapped(self, name: str) -> "_MappedFile":
        """Return the file as it is now, or was a short while ago."""
        return self._mapped(name)

    def plan(self, reader: object, parts: Iterable[tuple[Numbers, int, int]]) -> None:
        """Nothing has to be fetched."""

    def verify(self) -> None:
        """Verify every chunk of every file, but those that are recorded as verified.

        Raises:
            ArtifactError: names what is missing or damaged.
        """
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            for _ in pool.map(self._verify, self._entries):
                pass

    def _verify(self, name: str) -> None:
        if self._entry(name).num_bytes == 0:
            return
        mapped = self._map(name)
        for number in range(len(mapped.digests)):
            mapped.chunk(number)

    def _map(self, name: str) -> "_MappedFile":
        return _MappedFile(self._folder / name, self._digests(name, self._entry(name)))

    def _digests(self, name: str, entry: FileEntry) -> ChunkDigests:
        return ChunkDigests.read(f"{self._folder}: {name}", name, entry, self._content)

    def _entry(self, name: str) -> FileEntry:
        path = self._folder / name
        entry = self._entries.get(name)
        if entry is None or not path.is_file():
            raise ArtifactError(f"{self._folder}: {name} is missing")
        entry.check(FileEntry(path.stat().st_size, entry.xxh3_128), f"{self._folder}: {name}")
        return entry

    def _content(self, name: str) -> bytes | None:
        if name not in self._entries:
            return None
        self._entry(name)
        content = (self._folder / name).read_bytes()
        self._entries[name].check(digest_bytes(content), f"{self._folder}: {name}")
        return content


class _File:
    """A file by its name, which is mapped when it is first read; implements `ChunkedFile`."""

    def __init__(self, name: str, files: VerifiedFiles) -> None:
        self._name, self._files = name, files

    @property
    def chunk_bytes(self) -> int:
        return self._files.mapped(self._name).digests.chunk_bytes

    def chunk(self, number: int) -> np.ndarray:
        return self._files.mapped(self._name).chunk(number)


class _MappedFile:
    """One file in one state, which is not empty."""

    def __init__(self, path: Path, digests: ChunkDigests) -> None:
        self.digests = digests
        with open(path, "rb") as file:
            self._record = ChunkRecord.of(path, os.fstat(file.fileno()), digests)
            self._content = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)

    def chunk(self, number: int) -> np.ndarray:
        """Return the bytes of a chunk, verified."""
        start = number * self.digests.chunk_bytes
        content = self._content[start : start + self.digests.chunk_bytes]
        if not self._record.has(number):
            if not self.digests.fits(number, content.data):
                raise self.digests.damage(number)
            self._record.add(number)
        return content
