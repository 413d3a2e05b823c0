"""In which order samples come from several sources, so that each source has its share after every sample.

The order is a layout of one period, repeated. It is computed once, from whole weights, without chance.
"""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from modules.errors import InputError

MOST_SAMPLES = 2**16
"""Samples of the longest period. Weights that would need a longer one are rounded to multiples of 1 / MOST_SAMPLES."""


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Return whole numbers in the proportion of the weights, as written in decimal, whose sum is the period.

    They are exact if the period is at most MOST_SAMPLES; otherwise each share is rounded to a multiple of
    1 / MOST_SAMPLES, and the largest remainders are rounded up.

    Raises:
        InputError: The weights sum to nothing, or one is too small for any sample of the longest period.
    """
    shares = [Fraction(repr(weight)) for weight in weights]
    total = sum(shares)
    if not total:
        raise InputError("the weights sum to nothing; at least one must be above 0")
    exact = [share / total for share in shares]
    period = math.lcm(*(share.denominator for share in exact))
    return [int(share * period) for share in exact] if period <= MOST_SAMPLES else _rounded(weights, exact)


def are_exact(weights: Sequence[float], whole: Sequence[int]) -> bool:
    """Return whether whole weights have exactly the proportion of the weights."""
    shares = [Fraction(repr(weight)) for weight in weights]
    return all(share * sum(whole) == number * sum(shares) for share, number in zip(shares, whole, strict=True))


def _rounded(weights: Sequence[float], exact: Sequence[Fraction]) -> list[int]:
    quotas = [share * MOST_SAMPLES for share in exact]
    whole = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: whole[i] - quotas[i])
    for source in by_remainder[: MOST_SAMPLES - sum(whole)]:
        whole[source] += 1
    for weight, number in zip(weights, whole, strict=True):
        if weight and not number:
            raise InputError(
                f"a weight of {weight:g} is less than 1/{MOST_SAMPLES} of the sum of the weights, {sum(weights):g}, "
                "which is the smallest share; raise it, or set it to 0"
            )
    divisor = math.gcd(*whole)
    return [number // divisor for number in whole]


@lru_cache(maxsize=32)  # a period of 65,536 samples takes a sixth of a second
def layout(whole: tuple[int, ...]) -> np.ndarray:
    """Return the source of each sample of one period.

    After each sample, of this period and of all that follow it, every source has its share of the samples so far
    within 1 - 1 / (2 k - 2) of a sample, k sources with a weight.

    A source's next sample may come as soon as the source is 1 / (2 k - 2) of a sample behind its share, and must come
    before it is more than the bound behind. Of all that may come, the one that must come first does.

    Source: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980).

    Args:
        whole: Weights, not all 0.

    Returns:
        uint16 [sum(whole)].
    """
    active = [(source, weight) for source, weight in enumerate(whole) if weight]
    period, bound = sum(whole), 2 * len(active) - 2
    if not bound:
        return np.full(period, active[0][0], dtype=np.uint16)
    common = math.lcm(*(weight for _, weight in active))

    def first_place(number: int, weight: int) -> int:
        """Return after how many samples, itself included, sample `number` of a source may come."""
        return -(-period * (1 + bound * number) // (bound * weight))

    waiting = [(first_place(0, weight), source, 0, weight) for source, weight in active]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int, int]] = []
    found = np.empty(period, dtype=np.uint16)
    for place in range(1, period + 1):
        while waiting and waiting[0][0] <= place:
            _, source, number, weight = heapq.heappop(waiting)
            # proportional to the time at which it must have come, in whole numbers
            heapq.heappush(ready, ((bound * (number + 1) - 1) * (common // weight), source, number, weight))
        _, source, number, weight = heapq.heappop(ready)
        found[place - 1] = source
        heapq.heappush(waiting, (first_place(number + 1, weight), source, number + 1, weight))
    return found
