"""Read ranges of parameters and moments from a checkpoint's files: each chunk once, verified, in parallel."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
import xxhash
from torch import Tensor

from modules.cores import num_cores
from orchestrator.artifacts.artifact import file_entries
from orchestrator.checkpoints.parts import CHUNK_BYTES, Index, other_version
from orchestrator.distributed.training_state import Fragment
from orchestrator.errors import ArtifactError
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

_thread = threading.local()
_NUM_REMOTE_READERS = 16
_NUM_LOCAL_READERS = min(4, num_cores())


@dataclass(frozen=True)
class _Piece:
    """Bytes of one chunk, and the tensor that they are copied into."""

    start: int
    """First byte within the chunk."""
    into: Tensor
    """Flat, of any numeric dtype."""


class FragmentReader:
    """Reads ranges of any parameter's state from the files of a committed checkpoint that hold them.

    Args:
        manifest: Manifest of the checkpoint.
    """

    def __init__(self, storage: Storage, name: str, manifest: Mapping[str, Any]) -> None:
        self._storage, self._name = storage, name
        self._index: Index = manifest["fragments"]
        self._chunks: dict[str, list[str]] = manifest["chunks"]
        self._num_bytes = {file: entry.num_bytes for file, entry in file_entries(manifest).items()}

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
        pieces: dict[tuple[str, int], list[_Piece]] = defaultdict(list)
        for fragment in wanted:
            for chunk, piece in self._pieces(fragment):
                pieces[chunk].append(piece)
        files = sorted({file for file, _ in pieces})
        with ThreadPoolExecutor(_NUM_LOCAL_READERS if self._storage.is_local else _NUM_REMOTE_READERS) as pool:
            _all(pool.map(self._check_size, files))
            _all(pool.map(lambda item: self._copy_from(item[0], item[1]), sorted(pieces.items(), key=itemgetter(0))))

    def _pieces(self, fragment: Fragment) -> Iterator[tuple[tuple[str, int], _Piece]]:
        position, view = fragment.start, fragment.view.detach().view(-1)
        for first, last, file, offset in self._index.get(fragment.parameter, {}).get(fragment.kind, ()):
            if not first <= position < min(last, fragment.stop):
                continue
            until = min(last, fragment.stop)
            byte, end = offset + 4 * (position - first), offset + 4 * (until - first)
            while byte < end:
                number, within = divmod(byte, CHUNK_BYTES)
                count = min(end - byte, CHUNK_BYTES - within) // 4
                element = position - fragment.start
                yield (file, number), _Piece(within, view[element : element + count])
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

    def _copy_from(self, chunk: tuple[str, int], pieces: list[_Piece]) -> None:
        file, number = chunk
        start = number * CHUNK_BYTES
        stop = min(start + CHUNK_BYTES, self._num_bytes[file])
        data = _buffer()[: stop - start]
        self._storage.read_into(f"{self._name}/{file}", start, data)
        if xxhash.xxh3_64_hexdigest(data) != self._chunks[file][number]:
            raise ArtifactError(
                f"{self._storage.url(self._name)}: {file} is damaged between bytes {start} and {stop} "
                "(the digest is not the one in the manifest)"
            )
        with torch.no_grad():
            for piece in pieces:
                values = torch.frombuffer(data, dtype=torch.float32, offset=piece.start, count=piece.into.numel())
                piece.into.copy_(values)


def _buffer() -> memoryview:
    """Return this thread's buffer for a chunk; a new buffer for each chunk took twice as long (measured)."""
    if not hasattr(_thread, "buffer"):
        _thread.buffer = memoryview(bytearray(CHUNK_BYTES))
    return _thread.buffer


def _all(results: Iterator[None]) -> None:
    """Wait for all results, and raise the first error."""
    for _ in results:
        pass
