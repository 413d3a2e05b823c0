"""How much the examples of each class count in the loss of a classifier."""

import math
from collections.abc import Mapping
from typing import Literal

from modules.errors import InputError


def class_weights(
    counts: Mapping[str, int], setting: Literal["none", "balanced"] | Mapping[str, float]
) -> tuple[float, ...]:
    """Return the weight of each class, in the order of `counts`.

    Args:
        counts: Number of training examples by label.
        setting: `none` counts all alike; `balanced` gives every class the same sum of weights, n / (C x count), as in
            scikit-learn; otherwise the weights by label.

    Raises:
        InputError: a class without training examples is to be balanced, or the given weights do not suit the labels.
    """
    if setting == "none":
        return (1.0,) * len(counts)
    if setting == "balanced":
        return _balanced(counts)
    assert not isinstance(setting, str)
    return _given(counts, setting)


def _balanced(counts: Mapping[str, int]) -> tuple[float, ...]:
    for label, count in counts.items():
        if count == 0:
            raise InputError(
                f"class_weights=balanced: label {label!r} has no training example, so that nothing could balance it; "
                "add some, leave the label out, or give the weights by label"
            )
    total = sum(counts.values())
    return tuple(total / (len(counts) * count) for count in counts.values())


def _given(counts: Mapping[str, int], weights: Mapping[str, float]) -> tuple[float, ...]:
    for label, weight in weights.items():
        if label not in counts:
            raise InputError(f"class_weights: no label is named {label!r}; there are {_listed(counts)}")
        if not (weight > 0 and math.isfinite(weight)):
            raise InputError(f"class_weights: {label!r} has the weight {weight:g}; it must be a number above 0")
    if missing := [label for label in counts if label not in weights]:
        raise InputError(f"class_weights: none for {_listed(missing)}; give one to every label")
    return tuple(weights[label] for label in counts)


def _listed(labels: Mapping[str, int] | list[str]) -> str:
    names = list(map(repr, labels))
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
