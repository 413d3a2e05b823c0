"""Matrices that lie in flat ranges of several workers: brought together to be orthogonalised, and taken apart again.

Each matrix is orthogonalised by one worker that holds as much of it as any other, and those that hold equally much
share the work. So ZeRO-1 and 2 send only what lies across the end of a range, and ZeRO-3 each matrix to one worker.
They come in rounds, in which a worker holds a limited number of elements at a time, however large the model is.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor

Shape = tuple[int, int]
ROUND_ELEMENTS = 2**24
"""Most elements that a worker orthogonalises in a round; a larger matrix has a round of its own."""


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
    """The matrices of one flat range that each worker has; all call `replace` together.

    Args:
        shapes: Rows and columns of each matrix.
        pieces: Every worker's pieces; together they are the whole of each matrix.
        rank: This worker.
        num_workers: How many there are.
        device: Where it computes, and what its collectives send.
        dtype: What is sent.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        pieces: Iterable[Piece],
        rank: int,
        num_workers: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        ordered = sorted(pieces, key=attrgetter("worker", "matrix"))
        owners, like = _owners(shapes, ordered), torch.empty(0, dtype=dtype, device=device)
        rounds = _rounds(shapes, owners)
        self.shapes, self._rounds = shapes, []
        for number in range(1 + max(rounds)):
            of_round = [piece for piece in ordered if rounds[piece.matrix] == number]
            self._rounds.append(_Round(shapes, of_round, owners, rank, num_workers, like))

    def replace(
        self, values: Tensor, function: Callable[[list[Tensor]], Sequence[Tensor]], factors: Sequence[float]
    ) -> None:
        """Put in the place of each matrix a function of it, times its factor.

        Args:
            values: This worker's flat range, on any device; what is no matrix's stays as it is.
            function: Of some matrices, on `device` and of `dtype`; each worker calls it with those that it has.
            factors: One for each of all the matrices.
        """
        for each in self._rounds:
            each.scatter(function(each.gather(values)), values, factors)


class _Round:
    """Some of the matrices, whole at one time.

    Args:
        shapes: Of all matrices.
        pieces: Every worker's pieces of those of this round, by worker and matrix.
        owners: Which worker has each of all matrices.
        rank: This worker.
        num_workers: How many there are.
        like: An empty tensor on the device and of the type that is sent.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        pieces: Sequence[Piece],
        owners: Sequence[int],
        rank: int,
        num_workers: int,
        like: Tensor,
    ) -> None:
        self._shapes, self._like = shapes, like
        self._held = sorted(
            (piece for piece in pieces if piece.worker == rank), key=lambda piece: (owners[piece.matrix], piece.matrix)
        )
        """In the order in which they are sent: by the worker that orthogonalises them."""
        self._received = [piece for piece in pieces if owners[piece.matrix] == rank]
        """In the order in which they arrive: by the worker that holds them."""
        self._sent_sizes, self._received_sizes = [0] * num_workers, [0] * num_workers
        for piece in self._held:
            self._sent_sizes[owners[piece.matrix]] += piece.numel
        for piece in self._received:
            self._received_sizes[piece.worker] += piece.numel
        self._moves = any(owners[piece.matrix] != piece.worker for piece in pieces)

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the matrices that this worker has, from every worker's flat range of values."""
        sent = (_range(values, piece) for piece in self._held)
        received = self._exchanged(self._joined(sent), self._sent_sizes, self._received_sizes)
        sizes = {piece.matrix: math.prod(self._shapes[piece.matrix]) for piece in self._received}
        matrices = {matrix: received.new_empty(size) for matrix, size in sizes.items()}
        for piece, part in zip(self._received, received.split([piece.numel for piece in self._received]), strict=True):
            matrices[piece.matrix][piece.start : piece.stop] = part
        return [matrices[index].view(self._shapes[index]) for index in sorted(matrices)]

    def scatter(self, matrices: Sequence[Tensor], into: Tensor, factors: Sequence[float]) -> None:
        """Fill this worker's flat range from the matrices of `gather`, in their order, times their factors."""
        flat = dict(zip(sorted({piece.matrix for piece in self._received}), matrices, strict=True))
        sent = (flat[piece.matrix].reshape(-1)[piece.start : piece.stop] for piece in self._received)
        received = self._exchanged(self._joined(sent), self._received_sizes, self._sent_sizes)
        for piece, part in zip(self._held, received.split([piece.numel for piece in self._held]), strict=True):
            _range(into, piece).copy_(part).mul_(factors[piece.matrix])

    def _exchanged(self, values: Tensor, sent_sizes: list[int], received_sizes: list[int]) -> Tensor:
        if not self._moves:
            return values
        received = values.new_empty(sum(received_sizes))
        torch.distributed.all_to_all_single(received, values, received_sizes, sent_sizes)
        return received

    def _joined(self, parts: Iterable[Tensor]) -> Tensor:
        joined = [*parts]
        return torch.cat(joined).to(self._like) if joined else self._like


def _range(values: Tensor, piece: Piece) -> Tensor:
    return values[piece.offset : piece.offset + piece.numel]


def _rounds(shapes: Sequence[Shape], owners: Sequence[int]) -> list[int]:
    """Return in which round each matrix comes: equal shapes, which are computed together, in one as far as it goes."""
    rounds, number, filled = [0] * len(shapes), dict.fromkeys(owners, 0), dict.fromkeys(owners, 0)
    for matrix in sorted(range(len(shapes)), key=lambda matrix: sorted(shapes[matrix])):
        owner, numel = owners[matrix], math.prod(shapes[matrix])
        if filled[owner] and filled[owner] + numel > ROUND_ELEMENTS:
            number[owner], filled[owner] = number[owner] + 1, 0
        rounds[matrix], filled[owner] = number[owner], filled[owner] + numel
    return rounds


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
