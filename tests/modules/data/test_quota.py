"""Each source has its share within one sample after every sample; weights become whole numbers, exactly if they can."""

import math
import random

import numpy as np
import pytest
from plain_mixture import drawn, plain

from modules.data.quota import MOST_SAMPLES, are_exact, layout, whole_weights
from modules.errors import InputError


@pytest.mark.parametrize("seed", range(8))
def test_layout_is_that_of_the_plain_rule(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(6):
        whole = drawn(rng, 20)
        assert layout(tuple(whole)).tolist() == plain(whole, sum(whole))


def test_every_source_has_its_share_within_less_than_one_sample_at_every_prefix() -> None:
    rng = random.Random(1)
    for most in [*[40] * 60, *[400] * 20, 7000]:
        whole = drawn(rng, most)
        order, period, num_active = layout(tuple(whole)), sum(whole), sum(map(bool, whole))
        assert len(order) == period
        places = np.arange(1, period + 1)
        for source, weight in enumerate(whole):
            off = np.abs(places * weight - period * np.cumsum(order == source))
            assert off.max() < period
            if num_active > 1:  # the bound of the theorem, in whole numbers
                assert off.max() * (2 * num_active - 2) <= period * (2 * num_active - 3)


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([2.0, 1.0], [2, 1]),
        ([4.0, 2.0], [2, 1]),
        ([0.1, 0.1, 0.1], [1, 1, 1]),
        ([0.333, 0.667], [333, 667]),
        ([5.0, 0.0], [1, 0]),
        ([1e-6, 2e-6], [1, 2]),
    ],
)
def test_weights_become_whole_numbers_in_exactly_their_proportion(weights: list[float], whole: list[int]) -> None:
    assert whole_weights(weights) == whole
    assert are_exact(weights, whole)


def test_weights_of_a_longer_period_are_rounded_to_the_nearest_shares() -> None:
    weights = [0.123456789, 0.3, 0.7001]
    whole = whole_weights(weights)
    assert MOST_SAMPLES % sum(whole) == 0
    assert not are_exact(weights, whole)
    for weight, number in zip(weights, whole, strict=True):
        assert math.isclose(number / sum(whole), weight / sum(weights), abs_tol=1 / MOST_SAMPLES)


@pytest.mark.parametrize(
    ("weights", "said"),
    [([0.0, 0.0], "sum to nothing"), ([1.0, 1e-7], "a weight of 1e-07 is less than 1/65536 of the sum")],
)
def test_weights_of_which_nothing_could_come_are_refused(weights: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        whole_weights(weights)
