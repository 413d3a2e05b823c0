"""Matrices that lie in flat ranges of several workers: brought together to be orthogonalised, and taken apart again.

Each matrix is orthogonalised by one worker that holds as much of it as any other, and those that hold equally much
share the work. So ZeRO-1 and 2 send only what lies across the end of a range, and ZeRO-3 each matrix to one worker.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor

Shape = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of a matrix, in a worker's flat range."""

    worker: int
    matrix: int
    start: int
    stop: int
    offset: int
    """Of its first element in the range."""

    @property
    def numel(self) -> int:
        return self.stop - self.start


class ShardedMatrices:
    """The matrices of one flat range that each worker has; all call its methods together.

    Args:
        shapes: Rows and columns of each matrix.
        pieces: Every worker's pieces; together they are the whole of each matrix.
        rank: This worker.
        device: Where it computes, and what its collectives send.
        dtype: What is sent.
    """

    def __init__(
        self, shapes: Sequence[Shape], pieces: Iterable[Piece], rank: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        ordered = sorted(pieces, key=attrgetter("worker", "matrix"))
        owners = _owners(shapes, ordered)
        self.shapes, self._device, self._dtype = shapes, device, dtype
        self._held = sorted(
            (piece for piece in ordered if piece.worker == rank), key=lambda piece: (owners[piece.matrix], piece.matrix)
        )
        """In the order in which they are sent: by the worker that orthogonalises them."""
        self._received = [piece for piece in ordered if owners[piece.matrix] == rank]
        """In the order in which they arrive: by the worker that holds them."""
        num_workers = 1 + max(piece.worker for piece in ordered)
        self._sent_sizes, self._received_sizes = [0] * num_workers, [0] * num_workers
        for piece in self._held:
            self._sent_sizes[owners[piece.matrix]] += piece.numel
        for piece in self._received:
            self._received_sizes[piece.worker] += piece.numel
        self._moves = any(owners[piece.matrix] != piece.worker for piece in ordered)

    def whole(self, values: Tensor) -> list[Tensor]:
        """Return the matrices that this worker orthogonalises, from every worker's flat range of values."""
        values = values.to(self._device, self._dtype)
        sent = [values[piece.offset : piece.offset + piece.numel] for piece in self._held]
        received = self._exchanged(self._joined(sent), self._sent_sizes, self._received_sizes)
        matrices = {piece.matrix: self._empty(math.prod(self.shapes[piece.matrix])) for piece in self._received}
        for piece, part in zip(self._received, received.split([piece.numel for piece in self._received]), strict=True):
            matrices[piece.matrix][piece.start : piece.stop] = part
        return [matrices[index].view(self.shapes[index]) for index in sorted(matrices)]

    def parts(self, matrices: Sequence[Tensor], into: Tensor, factors: Sequence[float]) -> Tensor:
        """Fill this worker's flat range `into` from the matrices of `whole`, in their order, and return it.

        Args:
            factors: Of each of all the matrices: what its elements are multiplied by.
        """
        flat = dict(zip(sorted({piece.matrix for piece in self._received}), matrices, strict=True))
        sent = [flat[piece.matrix].reshape(-1)[piece.start : piece.stop] for piece in self._received]
        received = self._exchanged(self._joined(sent), self._received_sizes, self._sent_sizes)
        for piece, part in zip(self._held, received.split([piece.numel for piece in self._held]), strict=True):
            into[piece.offset : piece.offset + piece.numel].copy_(part).mul_(factors[piece.matrix])
        return into

    def _exchanged(self, values: Tensor, sent_sizes: list[int], received_sizes: list[int]) -> Tensor:
        if not self._moves:
            return values
        received = values.new_empty(sum(received_sizes))
        torch.distributed.all_to_all_single(received, values, received_sizes, sent_sizes)
        return received

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([*parts]) if parts else self._empty(0)

    def _empty(self, numel: int) -> Tensor:
        return torch.empty(numel, dtype=self._dtype, device=self._device)


def _owners(shapes: Sequence[Shape], pieces: Sequence[Piece]) -> list[int]:
    """Return which worker orthogonalises each matrix."""
    by_matrix = sorted(pieces, key=attrgetter("matrix"))
    work: dict[int, int] = {}
    owners = []
    for matrix, held in groupby(by_matrix, key=attrgetter("matrix")):
        holders = [*held]
        largest = max(piece.numel for piece in holders)
        owner = min(
            (piece.worker for piece in holders if piece.numel == largest),
            key=lambda worker: (work.get(worker, 0), worker),
        )
        work[owner] = work.get(owner, 0) + math.prod(shapes[matrix]) * min(shapes[matrix])
        owners.append(owner)
    return owners
