"""Which worker orthogonalises which matrix, and when."""

import pytest
import torch

from orchestrator.distributed import sharded_matrices
from orchestrator.distributed.sharded_matrices import Piece, ShardedMatrices, _owners, _rounds

CPU = torch.device("cpu")


def cut(numels: list[int], size: int) -> list[Piece]:
    """Return the pieces of matrices that lie end to end, cut into ranges of `size`."""
    pieces, begin = [], 0
    for matrix, numel in enumerate(numels):
        for worker in range(-(-sum(numels) // size)):
            start, stop = max(begin, worker * size), min(begin + numel, (worker + 1) * size)
            if start < stop:
                pieces.append(Piece(worker, matrix, start - begin, stop - begin, start - worker * size))
        begin += numel
    return pieces


def test_a_matrix_goes_to_a_worker_that_holds_most_of_it() -> None:
    # ranges end within the second matrix, and at the end of the third
    assert _owners([(4, 4), (4, 4), (2, 4)], cut([16, 16, 8], size=20)) == [0, 1, 1]


def test_workers_that_hold_equally_much_share_the_work() -> None:
    shapes = [(4, 4)] * 6
    pieces = [
        Piece(worker, matrix, 8 * worker, 8 * worker + 8, 8 * matrix) for matrix in range(6) for worker in range(2)
    ]
    assert sorted(_owners(shapes, pieces)) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("most", [2**24, 3], ids=["one round", "a round for each"])
def test_each_matrix_is_replaced_in_place_whatever_the_rounds(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_matrices, "ROUND_ELEMENTS", most)
    shapes = [(2, 3), (3, 1), (1, 2)]
    sharded = ShardedMatrices(shapes, cut([6, 3, 2], size=14), 0, 1, CPU, torch.float32)
    flat, rounds = torch.arange(14.0), []

    def plus_one(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
        rounds.append([tuple(matrix.shape) for matrix in matrices])
        return [matrix + 1 for matrix in matrices]

    sharded.replace(flat, plus_one, [2.0, 3.0, 4.0])
    assert sorted(shape for shapes in rounds for shape in shapes) == sorted(shapes)
    assert len(rounds) == (1 if most > 11 else 3)
    before = torch.arange(14.0)
    expected = [2 * (before[:6] + 1), 3 * (before[6:9] + 1), 4 * (before[9:11] + 1), before[11:]]
    assert torch.equal(flat, torch.cat(expected))  # the last three are padding


def test_workers_fill_their_rounds_side_by_side() -> None:
    # each of two workers has four matrices of 2**22 elements, and one of 2**25
    shapes = [(2**11, 2**11)] * 4 + [(2**12, 2**13)]
    assert _rounds(shapes * 2, [0] * 5 + [1] * 5) == [0, 0, 0, 0, 1] * 2
