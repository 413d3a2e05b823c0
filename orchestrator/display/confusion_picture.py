"""The confusion matrix as a picture.

Shapes: C classes. A row of the matrix holds the examples of one class, a column those that were taken for one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modules.tasks.classification_metrics import Matrix
from orchestrator.display.pictures import BLUE, LETTER_HEIGHT, LETTER_WIDTH, WHITE, lettering, png
from orchestrator.display.units import count

_MOST_NAMED = 128
"""Labels that are named; a picture with the names of more would be too large."""
_MOST_LETTERS = 40
_SIDE = 2048
"""Pixels of a matrix without names, at most if it has fewer labels."""
_SCALE = 2
_LINE, _LETTER = LETTER_HEIGHT * _SCALE, LETTER_WIDTH * _SCALE
_GAP = 10
_DARK = 0.5
"""Share from which on a number is written in white."""

Pixels = NDArray[np.float64]


def confusion_picture(labels: Sequence[str], confusion: Matrix) -> bytes:
    """Return a PNG of the confusion matrix [C, C]; dark is a large share of a label's examples.

    Labels are numbered as in the table, because letters of other scripts than the Latin one are not drawn. More than
    128 labels are not named, and numbers are written into the cells where all of them fit.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    if len(labels) > _MOST_NAMED:
        return _picture(_shaded(shares, max(1, _SIDE // len(labels))))
    cell = min(72, max(_LINE + 4, 720 // len(labels)))
    matrix = _shaded(shares, cell)
    _write_numbers(matrix, confusion, shares, cell)
    return _picture(_with_names(matrix, [f"{n} {_shortened(label)}" for n, label in enumerate(labels, 1)], cell))


def _picture(pixels: Pixels) -> bytes:
    return png(np.rint(pixels).astype(np.uint8))


def _shaded(shares: Matrix, cell: int) -> Pixels:
    shade = np.kron(shares, np.ones((cell, cell)))[..., None]
    return (1 - shade) * WHITE + shade * BLUE


def _write_numbers(matrix: Pixels, confusion: Matrix, shares: Matrix, cell: int) -> None:
    cells = [(row, column, count(float(confusion[row, column]))) for row, column in np.argwhere(confusion).tolist()]
    # the long numbers alone left out would make their cells look empty
    if _LETTER * max((len(text) for _, _, text in cells), default=0) > cell:
        return
    for row, column, text in cells:
        ink = lettering(text, _SCALE)
        top, left = row * cell + (cell - _LINE) // 2, column * cell + (cell - ink.shape[1]) // 2
        _write(matrix, ink, top, left, WHITE if shares[row, column] > _DARK else BLUE)


def _with_names(matrix: Pixels, names: Sequence[str], cell: int) -> Pixels:
    """Return the matrix with the names of its rows on the left, and those of its columns, upright, above."""
    margin = 3 * _GAP + _LINE + _LETTER * max(map(len, names))
    side = margin + len(matrix) + _GAP
    pixels = np.tile(WHITE, (side, side, 1))
    # a frame, since white cells at the border would run into the background
    pixels[margin - 1 : side - _GAP + 1, margin - 1 : side - _GAP + 1] = 128
    pixels[margin : side - _GAP, margin : side - _GAP] = matrix
    predicted, label = lettering("predicted", _SCALE), np.rot90(lettering("label", _SCALE))
    _write(pixels, predicted, _GAP, margin + max(0, len(matrix) - predicted.shape[1]) // 2)
    _write(pixels, label, margin + (len(matrix) - len(label)) // 2, _GAP)
    for number, name in enumerate(names):
        ink, place = lettering(name, _SCALE), margin + number * cell + (cell - _LINE) // 2
        _write(pixels, ink, place, margin - _GAP - ink.shape[1])
        _write(pixels, np.rot90(ink), margin - _GAP - ink.shape[1], place)
    return pixels


def _write(pixels: Pixels, ink: NDArray[np.bool_], top: int, left: int, colour: NDArray[np.float64] = BLUE) -> None:
    pixels[top : top + ink.shape[0], left : left + ink.shape[1]][ink] = colour


def _shortened(label: str) -> str:
    line = " ".join(label.split())
    return line if len(line) <= _MOST_LETTERS else line[: _MOST_LETTERS - 3] + "..."
