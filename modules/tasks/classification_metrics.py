"""How well examples were classified: everything is computed from the confusion matrix, which can be summed up.

Shapes: C classes. A row of the matrix holds the examples of one class, a column those that were taken for one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


class ClassScores(NamedTuple):
    """Scores of each class, float64 [C]; a share of nothing is 0."""

    precision: Matrix
    """Share of the examples taken for this class that are of it."""
    recall: Matrix
    """Share of the examples of this class that were found."""
    f1: Matrix
    """Harmonic mean of both."""
    support: Matrix
    """Number of examples."""


def confusion_matrix(labels: Sequence[int], predictions: Sequence[int], num_classes: int) -> Matrix:
    """Return how many examples of each class were taken for each class, float64 [C, C]."""
    matrix = np.zeros((num_classes, num_classes))
    np.add.at(matrix, (np.asarray(labels, int), np.asarray(predictions, int)), 1)
    return matrix


def class_scores(confusion: Matrix) -> ClassScores:
    """Return the scores of each class."""
    right, support, taken = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return ClassScores(_share(right, taken), _share(right, support), _share(2 * right, support + taken), support)


def accuracy(confusion: Matrix) -> float:
    """Return the share of examples that were classified rightly; 0 without examples."""
    return float(_share(np.trace(confusion), confusion.sum()))


def macro_f1(confusion: Matrix) -> float:
    """Return the mean F1 of all classes, those without any example counting 0.

    As scikit-learn's `f1_score(labels, predictions, labels=range(C), average="macro", zero_division=0)`.
    """
    return float(class_scores(confusion).f1.mean())


def validation_metrics(sums: ArrayLike) -> dict[str, float]:
    """Return the validation metrics by name, from what `modules.classifier.classification_sums` gives, summed up."""
    loss, weight, *cells = np.asarray(sums, np.float64)
    confusion = confusion_of(cells)
    return {
        "val/loss_classification": float(loss / weight),
        "val/accuracy": accuracy(confusion),
        "val/macro_f1": macro_f1(confusion),
    }


def confusion_of(cells: ArrayLike) -> Matrix:
    """Return the matrix [C, C] of its C x C cells, row by row."""
    flat = np.asarray(cells, np.float64)
    return flat.reshape(math.isqrt(len(flat)), -1)


def _share(part: ArrayLike, whole: ArrayLike) -> Matrix:
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)
