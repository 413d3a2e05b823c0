"""Weights of the classes, none, balanced or given."""

import pytest

from modules.errors import InputError
from modules.tasks.class_weights import class_weights

COUNTS = {"rare": 10, "usual": 60, "some": 20}


def test_none_counts_every_class_alike() -> None:
    assert class_weights(COUNTS, "none") == (1.0, 1.0, 1.0)
    assert class_weights({"a": 3, "b": 0}, "none") == (1.0, 1.0)


def test_balanced_gives_every_class_the_same_sum_of_weights() -> None:
    weights = class_weights(COUNTS, "balanced")
    assert weights == (3.0, 0.5, 1.5)  # 90 / (3 x count)
    sums = [weight * count for weight, count in zip(weights, COUNTS.values(), strict=True)]
    assert sums == [30, 30, 30]


def test_given_weights_are_found_by_label_and_stand_in_the_order_of_the_labels() -> None:
    assert class_weights(COUNTS, {"some": 2.0, "usual": 0.5, "rare": 7.0}) == (7.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("counts", "setting", "message"),
    [
        ({"a": 3, "b": 0}, "balanced", "label 'b' has no training example.*leave the label out, or give the weights"),
        ({"a": 3, "b": 1}, {"a": 1.0, "c": 1.0}, "no label is named 'c'; there are 'a', 'b'"),
        ({"a": 3, "b": 1}, {"a": 1.0}, "none for 'b'; give one to every label"),
        ({"a": 3, "b": 1}, {"a": 1.0, "b": 0.0}, "'b' has the weight 0; it must be a number above 0"),
        ({"a": 3, "b": 1}, {"a": float("nan"), "b": 1.0}, "'a' has the weight nan"),
    ],
)
def test_weights_that_do_not_suit_the_labels_are_refused(counts: dict, setting: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_weights(counts, setting)  # type: ignore[arg-type]
