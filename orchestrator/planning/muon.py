"""What Muon's step costs beside AdamW's: the operations of its iterations, and the memory that they take for a while.

The figures follow `modules.muon` and `orchestrator.distributed.sharded_matrices`, tensor by tensor.
"""

from collections.abc import Iterable
from math import prod
from typing import Literal

from orchestrator.planning.weights import Weight, has_one_moment

Shape = tuple[int, int]
_FLOAT32 = 4
_NUM_ITERATIONS, _BATCH_ELEMENTS, _ROUND_ELEMENTS = 5, 2**24, 2**24
"""As in those two, which import torch; a plan imports none."""


def matrix_shapes(found: Iterable[Weight]) -> list[Shape]:
    """Return the shape of each matrix that Muon trains, the shorter side first."""
    matrices = (weight for weight in found if weight.is_trained and has_one_moment(weight, "muon"))
    return [(min(matrix.shape), max(matrix.shape)) for matrix in matrices]


def iteration_flops(shapes: Iterable[Shape]) -> int:
    """Return the operations that orthogonalise matrices of these shapes once."""
    return sum(_NUM_ITERATIONS * (4 * rows**2 * columns + 2 * rows**3) for rows, columns in shapes)


def step_bytes(shapes: Iterable[Shape], device: Literal["cpu", "cuda"]) -> int:
    """Return what a step takes and frees again where every worker holds whole matrices: its largest batch of a shape.

    These are the means of the gradients and a copy of them side by side, in float32, and in the type of the products
    the matrices of two iterations and two of their Gram matrices.
    """
    width = product_bytes(device)
    return max(
        ((2 * _FLOAT32 + 2 * width) * batch + 2 * width * gram for batch, gram in _batches(list(shapes))), default=0
    )


def sharded_step_bytes(
    shapes: Iterable[Shape], num_workers: int, device: Literal["cpu", "cuda"], *, offloads: bool
) -> tuple[int, int]:
    """Return what a step takes and frees again where ZeRO shares out the matrices: of the device and of the host.

    A worker holds the means of its gradients, and brings its share of the matrices together in rounds.
    """
    shapes, width = list(shapes), product_bytes(device)
    share = sum(map(prod, shapes)) // num_workers
    if not share:
        return 0, 0
    held = min(share, max(_ROUND_ELEMENTS, *map(prod, shapes)))
    iterated = max(min(batch, held) + min(gram, held) for batch, gram in _batches(shapes))
    # matrices and what they become; then that is laid out to be sent, and received
    of_round = width * max(2 * (held + iterated), (4 if num_workers > 1 else 3) * held)
    means = _FLOAT32 * share
    return (of_round, means) if offloads else (of_round + means, 0)


def product_bytes(device: Literal["cpu", "cuda"]) -> int:
    """Return the bytes of a number in the iterations' products."""
    return 2 if device == "cuda" else _FLOAT32


def _batches(shapes: list[Shape]) -> Iterable[tuple[int, int]]:
    """Yield the elements that are computed together of each shape, and those of their Gram matrices."""
    for rows, columns in set(shapes):
        together = min(shapes.count((rows, columns)), max(1, _BATCH_ELEMENTS // (rows * columns)))
        yield together * rows * columns, together * rows * rows
