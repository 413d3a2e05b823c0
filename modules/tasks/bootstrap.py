"""Whether two models differ on the same examples: the paired bootstrap.

Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"; p-values as in sacrebleu's
`PairedTest`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
"""How often each example of a test set counts, float64 [E]."""
Scorer = Callable[[Weights], float]
"""A metric of a test set in which each example counts as often as its weight says."""

CONFIDENCE = 0.95
"""Of the intervals."""


class Difference(NamedTuple):
    """A metric of two models, and how sure the difference between them is."""

    first: float
    second: float
    low: float
    """Bounds of the interval in which first - second lies in 95 % of the resamples."""
    high: float
    p_value: float
    """Probability that chance alone makes so large a difference."""

    @property
    def difference(self) -> float:
        return self.first - self.second

    @property
    def is_sure(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    scorers: Mapping[str, tuple[Scorer, Scorer]], num_examples: int, num_resamples: int, seed: int
) -> dict[str, Difference]:
    """Return the difference of each metric; both models are scored on the same resamples of the examples.

    Args:
        scorers: By metric, those of the first and of the second model.
        num_examples: Examples of the test set, at least one.
        num_resamples: How often as many examples are drawn, with replacement.
        seed: Decides which.
    """
    generator = np.random.default_rng(seed)
    drawn = {name: np.empty((num_resamples, 2)) for name in scorers}
    for number in range(num_resamples):
        # drawn one after another, the numbers are those of one draw of all, which would take memory for all
        weights = np.bincount(generator.choice(num_examples, num_examples), minlength=num_examples).astype(np.float64)
        for name, pair in scorers.items():
            drawn[name][number] = [score(weights) for score in pair]
    whole = np.ones(num_examples)
    return {name: _difference(first(whole), second(whole), drawn[name]) for name, (first, second) in scorers.items()}


def _difference(first: float, second: float, drawn: NDArray[np.float64]) -> Difference:
    differences = drawn[:, 0] - drawn[:, 1]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, [tail, 1 - tail]).tolist()
    by_chance = np.abs(differences) - np.abs(differences).mean()
    p_value = (np.count_nonzero(by_chance > abs(first - second)) + 1) / (len(differences) + 1)
    return Difference(first, second, low, high, p_value)
