"""Metrics of classifications and of predicted tokens, as functions of how often each example counts."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modules.tasks.bootstrap import Scorer, Weights
from modules.tasks.classification_metrics import Matrix, accuracy, confusion_of, macro_f1


def class_scorers(
    labels: Sequence[int], predictions: Sequence[int], num_classes: int, nats: Sequence[float] | None = None
) -> dict[str, Scorer]:
    """Return accuracy and macro F1, and the loss where it is known.

    Args:
        labels: The class of each example.
        predictions: What it was taken for.
        num_classes: Number of classes.
        nats: The loss of each example.
    """
    cells = np.asarray(labels, np.int64) * num_classes + np.asarray(predictions, np.int64)

    def confusion(weights: Weights) -> Matrix:
        return confusion_of(np.bincount(cells, weights, minlength=num_classes**2))

    scorers: dict[str, Scorer] = {
        "accuracy": lambda weights: accuracy(confusion(weights)),
        "macro_f1": lambda weights: macro_f1(confusion(weights)),
    }
    return scorers if nats is None else {**scorers, "loss": _ratio(nats, np.ones(len(cells)))}


def token_scorers(nats: ArrayLike, num_targets: ArrayLike, num_bytes: ArrayLike) -> dict[str, Scorer]:
    """Return loss and perplexity of a target token, and bits per byte of text.

    Args:
        nats: Summed loss of each example.
        num_targets: Tokens that are predicted in each example.
        num_bytes: UTF-8 bytes of the text for which they stand.
    """
    loss, per_byte = _ratio(nats, num_targets), _ratio(nats, num_bytes)
    return {
        "loss": loss,
        "perplexity": lambda weights: math.exp(min(loss(weights), 700.0)),  # exp overflows float64 above 709
        "bits_per_byte": lambda weights: per_byte(weights) / math.log(2),
    }


def _ratio(parts: ArrayLike, wholes: ArrayLike) -> Scorer:
    """Return the sum of one number over the sum of another."""
    above, below = (np.asarray(values, np.float64) for values in (parts, wholes))

    def ratio(weights: NDArray[np.float64]) -> float:
        whole = float(weights @ below)
        return float(weights @ above) / whole if whole else math.nan

    return ratio
