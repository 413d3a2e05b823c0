"""Files of an artifact in a remote store, of which single chunks are fetched, once a machine, when they are needed."""

import fcntl
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from modules.data.number_files import Numbers
from orchestrator.artifacts.chunk_cache import ChunkCache, explained, note_used
from orchestrator.artifacts.chunk_digests import ChunkDigests
from orchestrator.artifacts.chunk_record import ChunkRecord
from orchestrator.artifacts.chunked_numbers import ChunkedNumbers
from orchestrator.artifacts.digests import FileEntry
from orchestrator.artifacts.fetch_ahead import FetchAhead
from orchestrator.artifacts.node_cache import fetch_file, is_at, read_part
from orchestrator.errors import ArtifactError, StorageError
from orchestrator.storage.store import Storage

REQUEST_CHUNKS = 8
"""Neighbouring chunks that are fetched by one request, if all of them are needed."""
_AHEAD_BYTES, _AHEAD_SHARE = 2**27, 4
"""Fetched before it is read: two groups of a large text, and at most this part of the cache."""
_HELD_CHUNKS, _HELD_SHARE, _LEAST_SHARE = 512, 4, 16
"""Chunks that a process holds mapped: more than a group has; and parts of the cache that they are at most."""
_DESCRIPTORS_SHARE = 4
"""Part of the files that a process may have open, of which each held chunk is one."""
_KNOWN_PATHS = 4096
"""Paths of a file's chunks that are kept, since making one takes as long as opening it."""
_Key = tuple["_CachedFile", int]


class CachedFiles:
    """The files of an artifact in a remote store; implements `modules.data.number_files.NumberFiles`."""

    def __init__(
        self,
        storage: Storage,
        name: str,
        entries: Mapping[str, FileEntry],
        folder: str,
        cache: ChunkCache,
        remedy: str,
    ) -> None:
        """Read nothing yet.

        Args:
            storage: Where the artifact is.
            name: Of the artifact.
            entries: Those of its manifest.
            folder: Of its chunks in the cache; must be another one for another content.
            cache: Where chunks are kept.
            remedy: What the user does about a damaged file.
        """
        self._remedy = remedy
        self.storage, self.name, self.entries, self.cache = storage, name, entries, cache
        self.folder = cache.folder / folder
        limit = cache.max_bytes
        self._held: OrderedDict[_Key, np.ndarray] = OrderedDict()
        self._most_held = min(_HELD_CHUNKS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _DESCRIPTORS_SHARE)
        self._held_bytes, self._most_held_bytes = 0, limit // _HELD_SHARE
        self._lock = threading.Lock()
        most_ahead = min(_AHEAD_BYTES, limit // _AHEAD_SHARE)
        self._ahead: FetchAhead[_Key] = FetchAhead(self._fetch_ahead, self._is_there, _size, most_ahead)

    def open(self, name: str, dtype: np.dtype) -> Numbers:
        """Return the numbers in a file.

        Raises:
            ArtifactError: the manifest does not name it.
        """
        if name not in self.entries:
            raise ArtifactError(f"{self.storage.url(self.name)}: {name} is missing")
        return ChunkedNumbers(_CachedFile(self, name), self.entries[name].num_bytes, dtype, self._remedy)

    def plan(self, reader: object, parts: Iterable[tuple[Numbers, int, int]]) -> None:
        self._ahead.plan(reader, _keys(parts))

    def hold_few(self) -> None:
        """Hold few chunks, where each process reads others and the cache has no room for all of them."""
        self._most_held_bytes = self.cache.max_bytes // _LEAST_SHARE

    def chunk(self, file: "_CachedFile", number: int) -> np.ndarray:
        """Return a chunk, fetched if it is not there; called by `_CachedFile` alone."""
        key = (file, number)
        self._ahead.used(key)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        content = self._loaded(file, number)
        with self._lock:
            self._hold(key, content)
        return content

    def _hold(self, key: _Key, content: np.ndarray) -> None:
        self._held_bytes += len(content) - len(self._held.pop(key, ()))
        self._held[key] = content
        while len(self._held) > 1 and (len(self._held) > self._most_held or self._held_bytes > self._most_held_bytes):
            (file, number), dropped = self._held.popitem(last=False)
            self._held_bytes -= len(dropped)
            note_used(file.path(number))  # it was last used now, however long ago it was mapped

    def _loaded(self, file: "_CachedFile", number: int) -> np.ndarray:
        for _ in range(3):  # somebody may empty the cache between the two
            with explained(file.path(number)):
                content = file.verified(number)
            if content is not None:
                return content
            self._fetch(file, number, waits=True)
        raise StorageError(
            f"{file.path(number)}: is gone or damaged as soon as it is there; choose another storage.cache_dir"
        )

    def _fetch_ahead(self, key: _Key) -> None:
        file, number = key
        self._fetch(file, number, waits=False)
        note_used(file.path(number))

    def _is_there(self, key: _Key) -> bool:
        """Return whether a chunk is held, or in the cache, where others remove it later than what is not planned."""
        return key in self._held or note_used(key[0].path(key[1]))

    def _fetch(self, file: "_CachedFile", number: int, waits: bool) -> None:
        """Fetch a chunk, and with it the neighbours that are planned; if `waits` is false, not what another fetches."""
        if file.path(number).exists():
            return
        planned = self._ahead.planned()
        with _locked(file.path(number - number % REQUEST_CHUNKS), waits) as is_ours:
            if not is_ours or file.path(number).exists():
                return
            if file.digests.digests is None:
                self._fetch_whole(file)
                return
            numbers = _run(number, lambda at: (file, at) in planned and not file.path(at).exists(), len(file.digests))
            self.cache.put(file.fetched(numbers), self._needed)

    def _needed(self) -> set[Path]:
        return {file.path(number) for file, number in self._ahead.planned()}

    def _fetch_whole(self, file: "_CachedFile") -> None:
        with self.cache.room(file.entry.num_bytes, self._needed):
            pass
        fetch_file(self.storage, f"{self.name}/{file.name}", file.entry, file.path(0))


class _CachedFile:
    """One file; implements `ChunkedFile`."""

    def __init__(self, files: CachedFiles, name: str) -> None:
        self._files, self.name = files, name
        self.entry = files.entries[name]
        self._inodes: dict[int, int] = {}
        self.path = lru_cache(_KNOWN_PATHS)(self._path)
        """Returns where a chunk is kept."""

    @cached_property
    def digests(self) -> ChunkDigests:
        url = self._files.storage.url(f"{self._files.name}/{self.name}")
        return ChunkDigests.read(url, self.name, self.entry, self._content)

    @property
    def chunk_bytes(self) -> int:
        return self.digests.chunk_bytes

    def chunk(self, number: int) -> np.ndarray:
        return self._files.chunk(self, number)

    def _path(self, number: int) -> Path:
        return self._files.folder / self.name / f"{number:06d}"

    def verified(self, number: int) -> np.ndarray | None:
        """Return a chunk that is there, verified; one that is damaged is removed."""
        path = self.path(number)
        found = self._files.cache.mapped(path)
        if found is None:
            return None
        content, state = found
        # a file in the cache is replaced, never changed, so this process need not verify it again
        if self._inodes.get(number) != state.st_ino and not self._fits(path, state, number, content):
            path.unlink(missing_ok=True)
            return None
        self._inodes[number] = state.st_ino
        return content

    def _fits(self, path: Path, state: os.stat_result, number: int, content: np.ndarray) -> bool:
        start, stop = self.digests.place(number)
        if len(content) != stop - start:
            return False
        if self.digests.digests is not None:
            return self.digests.fits(number, content.data)  # in each process: that costs less than a record of it
        record = ChunkRecord.of(path, state, self.digests)
        if not record.has(0):
            if not self.digests.fits(0, content.data):
                return False
            record.add(0)
        return True

    def fetched(self, numbers: range) -> dict[Path, bytes]:
        """Return the content of consecutive chunks from the store; one that does not fit is fetched once more.

        Raises:
            ArtifactError: one does not fit again.
        """
        digests, found = self.digests, {}
        start = digests.place(numbers[0])[0]
        content = self._read(start, digests.place(numbers[-1])[1])
        for number in numbers:
            first, stop = digests.place(number)
            part = content[first - start : stop - start]
            if not digests.fits(number, part):
                part = self._read(first, stop)
            if not digests.fits(number, part):
                raise digests.damage(number)
            found[self.path(number)] = part
        return found

    def _read(self, start: int, stop: int) -> bytes:
        return read_part(self._files.storage, f"{self._files.name}/{self.name}", start, stop, self.entry.num_bytes)

    def _content(self, name: str) -> bytes | None:
        entry = self._files.entries.get(name)
        if entry is None:
            return None
        copy = self._files.folder / name
        fetch_file(self._files.storage, f"{self._files.name}/{name}", entry, copy)
        return copy.read_bytes()


def _keys(parts: Iterable[tuple[Numbers, int, int]]) -> Iterator[_Key]:
    for numbers, start, stop in parts:
        assert isinstance(numbers, ChunkedNumbers)
        assert isinstance(numbers.file, _CachedFile)
        for number in range(start // numbers.chunk_length, (stop - 1) // numbers.chunk_length + 1):
            yield numbers.file, number


def _size(key: _Key) -> int:
    return key[0].chunk_bytes


def _run(number: int, is_needed: Callable[[int], bool], num_chunks: int) -> range:
    """Return the chunks around this one, among those that a request fetches together, that are needed one by one."""
    first = number - number % REQUEST_CHUNKS
    last = min(first + REQUEST_CHUNKS, num_chunks) - 1
    start = stop = number
    while start > first and is_needed(start - 1):
        start -= 1
    while stop < last and is_needed(stop + 1):
        stop += 1
    return range(start, stop + 1)


@contextmanager
def _locked(path: Path, waits: bool) -> Iterator[bool]:
    """Hold the right to fetch the chunks that begin with the one of this path; yield whether it was given."""
    lock = path.with_name(f".{path.name}.lock")
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with ExitStack() as stack:
            with explained(lock):
                file = stack.enter_context(open(lock, "ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError:  # no locks here: several may fetch the same
                yield True
                return
            if is_at(file.fileno(), lock):
                stack.callback(lock.unlink, missing_ok=True)
                yield True
                return
