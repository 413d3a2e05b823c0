"""Which worker orthogonalises which matrix, and that one worker alone sends nothing."""

import torch

from orchestrator.distributed.sharded_matrices import Piece, ShardedMatrices, _owners

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


def test_one_worker_takes_its_matrices_apart_as_it_has_put_them_together() -> None:
    shapes = [(2, 3), (3, 1)]
    sharded = ShardedMatrices(shapes, cut([6, 3], size=12), 0, CPU, torch.float32)
    flat = torch.arange(12.0)  # the last three are padding
    matrices = sharded.whole(flat)
    assert [tuple(matrix.shape) for matrix in matrices] == shapes
    expected = torch.cat([2 * flat[:6], 3 * flat[6:9], torch.zeros(3)])
    assert torch.equal(sharded.parts(matrices, torch.zeros(12), [2.0, 3.0]), expected)
