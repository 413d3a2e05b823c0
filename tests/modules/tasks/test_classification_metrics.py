"""Accuracy, macro F1 and the scores of each class, beside values computed by hand and by a plain loop."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from modules.tasks.classification_metrics import (
    accuracy,
    class_scores,
    confusion_matrix,
    confusion_of,
    macro_f1,
    validation_metrics,
)

# of three examples of class 0 one is taken for 1, of two of class 1 one for 2, and both of class 2 are found
LABELS, PREDICTIONS = [0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 2]


def test_scores_are_those_computed_by_hand() -> None:
    confusion = confusion_matrix(LABELS, PREDICTIONS, 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 2]]
    scores = class_scores(confusion)
    assert scores.precision == pytest.approx([1, 1 / 2, 2 / 3])
    assert scores.recall == pytest.approx([2 / 3, 1 / 2, 1])
    assert scores.f1 == pytest.approx([0.8, 0.5, 0.8])
    assert scores.support.tolist() == [3, 2, 2]
    assert accuracy(confusion) == pytest.approx(5 / 7)
    assert macro_f1(confusion) == pytest.approx(0.7)


def test_a_class_without_examples_counts_0_in_macro_f1() -> None:
    confusion = confusion_matrix([0, 0, 1], [0, 0, 1], 4)
    assert accuracy(confusion) == 1
    assert macro_f1(confusion) == 0.5
    assert class_scores(confusion).f1.tolist() == [1, 1, 0, 0]


def test_one_class_that_is_always_taken_has_a_macro_f1_far_below_its_accuracy() -> None:
    confusion = confusion_matrix([0] * 9 + [1], [0] * 10, 2)
    assert accuracy(confusion) == 0.9
    assert macro_f1(confusion) == pytest.approx(0.9 * 2 / 1.9 / 2)


def plain_macro_f1(labels: Sequence[int], predictions: Sequence[int], num_classes: int) -> float:
    total = 0.0
    for number in range(num_classes):
        hits = misses = false_alarms = 0
        for label, prediction in zip(labels, predictions, strict=True):
            hits += label == number == prediction
            misses += label == number != prediction
            false_alarms += prediction == number != label
        precision = hits / (hits + false_alarms) if hits + false_alarms else 0.0
        recall = hits / (hits + misses) if hits + misses else 0.0
        total += 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return total / num_classes


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_that_of_a_plain_loop_over_examples(seed: int) -> None:
    drawn = random.Random(seed)
    num_classes, count = drawn.randint(2, 8), drawn.randint(1, 60)
    labels = [drawn.randrange(num_classes) for _ in range(count)]
    predictions = [label if drawn.random() < 0.6 else drawn.randrange(num_classes) for label in labels]
    confusion = confusion_matrix(labels, predictions, num_classes)
    assert macro_f1(confusion) == pytest.approx(plain_macro_f1(labels, predictions, num_classes))
    right = sum(label == prediction for label, prediction in zip(labels, predictions, strict=True))
    assert accuracy(confusion) == pytest.approx(right / count)


def test_sums_over_batches_give_the_metrics_of_all_their_examples() -> None:
    parts = [(slice(0, 3), 1.5, 2.0), (slice(3, 7), 2.5, 6.0)]
    sums = sum(
        np.array([loss, weight, *confusion_matrix(LABELS[part], PREDICTIONS[part], 3).ravel()])
        for part, loss, weight in parts
    )
    metrics = validation_metrics(sums)
    assert metrics == {
        "val/loss_classification": 0.5,
        "val/accuracy": pytest.approx(5 / 7),
        "val/macro_f1": pytest.approx(0.7),
    }
    assert confusion_of(np.asarray(sums)[2:]).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 2]]


def test_nothing_to_classify_is_no_division_by_zero() -> None:
    nothing = confusion_matrix([], [], 2)
    assert (accuracy(nothing), macro_f1(nothing)) == (0.0, 0.0)
