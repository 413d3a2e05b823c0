"""The numbers in a file that is read by verified chunks."""

from bisect import bisect_left, bisect_right
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from orchestrator.errors import ArtifactError


class ChunkedFile(Protocol):
    """A file of which a chunk is read and verified at a time."""

    @property
    def chunk_bytes(self) -> int:
        """Bytes of every chunk but the last; may have to be read."""
        ...

    def chunk(self, number: int) -> np.ndarray:
        """Return the verified bytes of a chunk, uint8."""
        ...


class ChunkedNumbers:
    """Numbers of one type; implements `modules.data.number_files.Numbers`."""

    def __init__(self, file: ChunkedFile, num_bytes: int, dtype: np.dtype, remedy: str) -> None:
        """Read nothing yet.

        Args:
            file: Which holds them.
            num_bytes: Its size.
            dtype: Of the numbers.
            remedy: What the user does about a damaged file.
        """
        self.file, self._remedy = file, remedy
        self._dtype, self._length = dtype, num_bytes // dtype.itemsize
        self._firsts: dict[int, Any] = {}

    @cached_property
    def chunk_length(self) -> int:
        """Numbers in a chunk."""
        try:
            return self.file.chunk_bytes // self._dtype.itemsize
        except ArtifactError as error:
            raise ArtifactError(f"{error}; {self._remedy}") from None

    def _chunk(self, number: int) -> np.ndarray:
        try:
            return self.file.chunk(number).view(self._dtype)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; {self._remedy}") from None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice, /) -> np.ndarray:
        start, stop, step = where.indices(self._length)
        assert step == 1
        if start >= stop:
            return np.empty(0, dtype=self._dtype)
        first, offset = divmod(start, self.chunk_length)
        end = offset + stop - start
        if end <= self.chunk_length:
            return self._chunk(first)[offset:end]
        parts = [self._chunk(number) for number in range(first, first + -(-end // self.chunk_length))]
        rest = end - (len(parts) - 1) * self.chunk_length
        return np.concatenate([parts[0][offset:], *parts[1:-1], parts[-1][:rest]])

    def searchsorted(self, v: Any, /, side: Any = "left") -> Any:
        """Return where `v` belongs among ascending numbers; the chunks on the way there are read, and no others."""
        values = np.asarray(v)
        found = [self._search(value, side) for value in values.reshape(-1).tolist()]
        return np.array(found, dtype=np.int64).reshape(values.shape)

    def _search(self, value: Any, side: Any) -> int:
        if not self._length:
            return 0
        bisect, num_chunks = bisect_left if side == "left" else bisect_right, -(-self._length // self.chunk_length)
        number = max(0, bisect(range(num_chunks), value, key=self._first) - 1)
        return number * self.chunk_length + int(self._chunk(number).searchsorted(value, side))

    def _first(self, number: int) -> Any:
        if number not in self._firsts:
            self._firsts[number] = self._chunk(number)[0].item()
        return self._firsts[number]
