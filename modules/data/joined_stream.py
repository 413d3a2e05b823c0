"""Several token streams as one, end to end, without a copy."""

from collections.abc import Iterator, Sequence

import numpy as np

from modules.data.group_order import Order
from modules.data.shards import TokenStream


class JoinedStream:
    """Token streams whose positions are numbered through; no window may lead from one into the next."""

    def __init__(self, streams: Sequence[TokenStream]) -> None:
        self._streams = streams
        lengths = np.array([len(stream) for stream in streams], dtype=np.int64)
        self._ends = np.cumsum(lengths)
        self._offsets = self._ends - lengths

    def __len__(self) -> int:
        return int(self._ends[-1])

    def positions(self, sources: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Return the positions in the whole of positions within single streams, int64 of their shape."""
        return starts + self._offsets[sources]

    def fill(self, starts: np.ndarray, length: int, out: np.ndarray) -> None:
        """Copy a window of tokens to each row of `out`, as `TokenStream.fill` does."""
        for stream, rows, within in self._by_stream(starts):
            if len(rows) == len(starts):
                stream.fill(within, length, out)
                return
            windows = np.empty((len(rows), length), dtype=out.dtype)
            stream.fill(within, length, windows)
            out[rows] = windows

    def num_bytes(self, starts: np.ndarray, length: int) -> int | None:
        """Return the bytes of text of all windows, as `TokenStream.num_bytes` does; None if some are not known."""
        total = 0
        for stream, _, within in self._by_stream(starts):
            num_bytes = stream.num_bytes(within, length)
            if num_bytes is None:
                return None
            total += num_bytes
        return total

    def document_ids(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the number of each token's document within its window, int32 [n, length]."""
        ids = np.empty((len(starts), length), dtype=np.int32)
        for stream, rows, within in self._by_stream(starts):
            ids[rows] = stream.document_ids(within, length)
        return ids

    def order(self, sequence_length: int, seed: int) -> Order:
        """Return the order of the windows of a single stream; that of several follows from their mixture."""
        (stream,) = self._streams
        return stream.order(sequence_length, seed)

    def plan(self, starts: np.ndarray, length: int) -> None:
        """Say which windows are read next, in this order, as `TokenStream.plan` does."""
        for stream, _, within in self._by_stream(starts):
            stream.plan(within, length)

    def _by_stream(self, starts: np.ndarray) -> Iterator[tuple[TokenStream, np.ndarray, np.ndarray]]:
        """Yield each stream that has windows, the numbers of their rows, and their positions in it."""
        of_stream = np.searchsorted(self._ends, starts, side="right")
        for number in np.unique(of_stream):
            rows = np.flatnonzero(of_stream == number)
            yield self._streams[number], rows, starts[rows] - self._offsets[number]
