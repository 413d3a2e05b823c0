"""Read ranges of parameters and moments from a checkpoint's files: verified, each chunk once, in parallel."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import xxhash
from torch import Tensor

from modules.cores import num_cores
from orchestrator.artifacts.artifact import file_entries
from orchestrator.checkpoints.indexes import index_of
from orchestrator.checkpoints.parts import other_version
from orchestrator.distributed.training_state import Fragment
from orchestrator.errors import ArtifactError
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

_thread = threading.local()
_NUM_REMOTE_READERS = 16
_NUM_LOCAL_READERS = min(4, num_cores())
READ_BYTES = 8 * 2**20
"""What one request reads at most."""
_GAP_BYTES = 2**20
"""Bytes between two ranges that are read with them: another request would take as long."""


@dataclass(frozen=True)
class _Piece:
    """Bytes of a file, and the tensor that they are copied into."""

    start: int
    """First byte in the file."""
    into: Tensor
    """Flat, of any numeric dtype."""

    @property
    def stop(self) -> int:
        return self.start + 4 * self.into.numel()


class FragmentReader:
    """Reads ranges of any parameter's state from the files of a committed checkpoint that hold them.

    Args:
        manifest: Manifest of the checkpoint.
    """

    def __init__(self, storage: Storage, name: str, manifest: Mapping[str, Any]) -> None:
        self._storage, self._name = storage, name
        self._num_bytes = {file: entry.num_bytes for file, entry in file_entries(manifest).items()}
        self._chunk_bytes: int = manifest["chunk_bytes"]
        self._index = index_of(storage, name, manifest)

    def read(self, parameter: str, kind: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) as flat float32."""
        values = torch.empty(stop - start, dtype=torch.float32)
        self.fill([Fragment(parameter, kind, start, stop, values)])
        return values

    def fill(self, wanted: Iterable[Fragment]) -> None:
        """Copy the ranges that the fragments name into their views; no damaged chunk is copied.

        Raises:
            ArtifactError: a file is missing, has another size or is damaged.
            OtherCheckpointError: a range is in no file.
            StorageError: the store cannot be read.
        """
        fragments = list(wanted)
        with ThreadPoolExecutor(_NUM_LOCAL_READERS if self._storage.is_local else _NUM_REMOTE_READERS) as pool:
            self._index.open((item.parameter, item.start, item.stop) for item in fragments)
            windows: dict[tuple[str, int], list[_Piece]] = defaultdict(list)
            for fragment in fragments:
                for file, piece in self._pieces(fragment):
                    windows[file, piece.start // READ_BYTES].append(piece)
            _all(pool.map(self._check_size, sorted({file for file, _ in windows})))
            gap = max(_GAP_BYTES, self._chunk_bytes)  # so that no chunk is in two requests
            runs = [(place[0], run) for place in sorted(windows) for run in _runs(windows[place], gap)]
            _all(pool.map(lambda item: self._copy_from(*item), runs))

    def _pieces(self, fragment: Fragment) -> Iterator[tuple[str, _Piece]]:
        """Yield each file with bytes of a fragment, cut where the next request begins."""
        position, view = fragment.start, fragment.view.detach().view(-1)
        for first, last, file, offset in self._index.ranges(fragment.parameter, fragment.kind):
            if not first <= position < min(last, fragment.stop):
                continue
            until = min(last, fragment.stop)
            byte, end = offset + 4 * (position - first), offset + 4 * (until - first)
            while byte < end:
                count = min(end - byte, READ_BYTES - byte % READ_BYTES) // 4
                element = position - fragment.start
                yield file, _Piece(byte, view[element : element + count])
                byte, position = byte + 4 * count, position + count
        if position < fragment.stop:
            raise other_version(
                f"{self._storage.url(self._name)}: no file holds elements {position} to {fragment.stop} of "
                f"{fragment.kind} of {fragment.parameter}"
            )

    def _check_size(self, file: str) -> None:
        try:
            found = self._storage.num_bytes(f"{self._name}/{file}")
        except NotFoundError:
            raise ArtifactError(f"{self._storage.url(self._name)}: {file} is missing") from None
        listed = self._num_bytes.get(file, "nothing")
        if found != listed:
            raise ArtifactError(
                f"{self._storage.url(self._name)}: {file} has {found} bytes; the manifest says {listed}"
            )

    def _copy_from(self, file: str, pieces: list[_Piece]) -> None:
        """Read the chunks from the first piece to the last, verify them and copy the pieces."""
        size = self._chunk_bytes
        start = pieces[0].start // size * size
        stop = min(-(-max(piece.stop for piece in pieces) // size) * size, self._num_bytes[file])
        data = _buffer()[: stop - start]
        self._storage.read_into(f"{self._name}/{file}", start, data)
        self._verify(file, start, data)
        with torch.no_grad():
            for piece in pieces:
                values = torch.frombuffer(
                    data, dtype=torch.float32, offset=piece.start - start, count=piece.into.numel()
                )
                piece.into.copy_(values)

    def _verify(self, file: str, start: int, data: memoryview) -> None:
        size, digests = self._chunk_bytes, self._index.digests(file)
        for first in range(0, len(data), size):
            chunk = data[first : first + size]
            if xxhash.xxh3_64_hexdigest(chunk) != digests[(start + first) // size]:
                begin = start + first
                raise ArtifactError(
                    f"{self._storage.url(self._name)}: {file} is damaged between bytes {begin} and "
                    f"{begin + len(chunk)} (the digest is not the one in its index)"
                )


def _runs(pieces: list[_Piece], gap: int) -> Iterator[list[_Piece]]:
    """Yield the pieces that one request reads together: those with at most so many bytes between them."""
    run: list[_Piece] = []
    end = 0
    for piece in sorted(pieces, key=attrgetter("start")):
        if run and piece.start > end + gap:
            yield run
            run = []
        run.append(piece)
        end = max(end, piece.stop)
    yield run


def _buffer() -> memoryview:
    """Return this thread's buffer for a request; a new buffer for each took twice as long (measured)."""
    if not hasattr(_thread, "buffer"):
        _thread.buffer = memoryview(bytearray(READ_BYTES))
    return _thread.buffer


def _all(results: Iterator[None]) -> None:
    """Wait for all results, and raise the first error."""
    for _ in results:
        pass
