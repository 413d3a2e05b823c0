"""The text in groups of files, each of which is read on its own."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import xxhash

from modules.config import DataConfig
from modules.data.documents import Piece, read_documents
from modules.data.hub import read_hub_dataset
from modules.data.pieces import Assigned, assigned, first_bytes
from modules.data.quality.sieve import Sieve, is_on
from modules.data.rows import TextField
from modules.data.source_files import SourceFile

LARGEST_GROUP_BYTES = 2**26
"""Files are read together while their bytes are at most this, and at most a share of all bytes."""
SMALLEST_GROUP_BYTES = 2**20
NUM_GROUPS = 64
"""A small text is read in about so many groups, so that all processes have some of it."""


class FileGroup(NamedTuple):
    """Consecutive files of the text. Which ones it is depends on the files alone."""

    number: int
    files: tuple[SourceFile, ...]
    first_file: int = 0
    """The number of its first file among all files."""

    @property
    def num_bytes(self) -> int:
        """Size of the stored files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def key(self) -> str:
        """What names it among the groups of one text, and changes if it has other files."""
        found = repr([(file.name, file.num_bytes) for file in self.files])
        return f"{self.number:06d}-{xxhash.xxh3_64_hexdigest(found.encode())}"


def file_groups(files: Sequence[SourceFile], data: DataConfig) -> list[FileGroup]:
    """Return the groups of a text: one if all of it has to be read in order, as filters do, or is no file."""
    if not files or is_on(data):
        return [FileGroup(0, tuple(files))]
    total = sum(file.num_bytes for file in files)
    largest = min(LARGEST_GROUP_BYTES, max(SMALLEST_GROUP_BYTES, total // NUM_GROUPS))
    groups: list[list[SourceFile]] = [[]]
    size = 0
    for file in files:
        if groups[-1] and size + file.num_bytes > largest:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.num_bytes
    firsts = accumulate((len(group) for group in groups), initial=0)
    return [
        FileGroup(number, tuple(group), first)
        for number, (group, first) in enumerate(zip(groups, firsts, strict=False))
    ]


class GroupReader:
    """The text of a group in pieces; every call reads it from the start."""

    def __init__(
        self, group: FileGroup, data: DataConfig, start: int = 0, val_start: int = 0, sieve: Sieve | None = None
    ):
        """Read nothing yet.

        Args:
            group: Its files; none for `data.source=huggingface`.
            data: How they are read, and what is held out.
            start: Bytes of text before the group, which `data.max_bytes` and `data.split=position` count.
            val_start: Byte of the whole text at which the held-out part begins, with `data.split=position`.
            sieve: What leaves documents out and changes them, once it has looked at all.
        """
        self._group, self._data, self._sieve = group, data, sieve
        self._start, self._val_start = start, val_start
        self.field = TextField(data)
        """Counts the rows of the latest reading."""

    def whole(self) -> Iterator[Piece]:
        """Yield every piece of the text as it is found, up to `data.max_bytes`."""
        return (piece for piece, _ in self._limited())

    def assigned(self) -> Iterator[Assigned]:
        """Yield every piece that is learned or held out, with its split."""
        return assigned(self._sized(), self._data, self._start, self._val_start)

    def count(self) -> int:
        """Return the bytes of text that are learned or held out."""
        return sum(num_bytes for _, num_bytes in self._sized())

    def _sized(self) -> Iterator[tuple[Piece, int]]:
        return self._limited() if self._sieve is None else first_bytes(self._sieve.pieces(), None)

    def _limited(self) -> Iterator[tuple[Piece, int]]:
        most = self._data.max_bytes
        return first_bytes(self._read(), None if most is None else most - self._start)

    def _read(self) -> Iterator[Piece]:
        data = self._data
        self.field = TextField(data)
        if data.source == "huggingface":
            yield from read_hub_dataset(data.path[0], data.revision, data.subset, data.hub_split, self.field)
        for number, file in enumerate(self._group.files, start=self._group.first_file):
            yield from read_documents(file, data, self.field, number)
