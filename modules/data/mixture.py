"""Which source, and which window of it, each sample of a training is: a function of the sample's number alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modules.data import quota
from modules.data.group_order import Order


@dataclass(frozen=True)
class Part:
    """A stretch of samples with fixed weights, up to the next part or without end."""

    first_sample: int
    weights: tuple[int, ...]
    """Whole, one for each source; see `quota.whole_weights`."""


class Mixture:
    """Assignment of a source, and of a window of it, to each sample, at a cost that does not grow with its number.

    Within each part, after each of its samples, every source has had its share of the part's samples within less than
    one sample. The samples of a source follow its own order of windows through all parts, as if it were alone.
    """

    def __init__(self, orders: Sequence[Order], parts: Sequence[Part]) -> None:
        """Lay out the parts.

        Args:
            orders: Of the windows of each source.
            parts: In ascending order; the first begins at sample 0.
        """
        self._orders = orders
        self._firsts = np.array([part.first_sample for part in parts], dtype=np.int64)
        self._parts: list[_LaidOut] = []
        before = np.zeros(len(orders), dtype=np.int64)
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            self._parts.append(_LaidOut(part, before))
            if following is not None:
                before = self._parts[-1].counts(following.first_sample)

    @classmethod
    def of_one(cls, order: Order) -> "Mixture":
        """Return the mixture of a single source."""
        return cls([order], [Part(0, (1,))])

    @property
    def epoch_sizes(self) -> list[int]:
        """Samples in an epoch of each source."""
        return [order.num_windows for order in self._orders]

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each sample, and the first position of its window in that source.

        Args:
            samples: int64 [n], sample numbers from 0, in any order, without upper limit.

        Returns:
            int64 [n] and int64 [n].
        """
        sources, numbers = self._numbers(samples)
        starts = np.empty(len(samples), dtype=np.int64)
        for source, order in enumerate(self._orders):
            if len(chosen := np.flatnonzero(sources == source)):
                starts[chosen] = order.starts(numbers[chosen])
        return sources, starts

    def counts(self, num_samples: int) -> np.ndarray:
        """Return the number of samples of each source among the first `num_samples`, int64 [sources]."""
        return self._parts[np.searchsorted(self._firsts, num_samples, side="right") - 1].counts(num_samples)

    def _numbers(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each sample, and which sample of that source it is."""
        sources, numbers = np.empty((2, len(samples)), dtype=np.int64)
        of_part = np.searchsorted(self._firsts, samples, side="right") - 1
        for part in np.unique(of_part):
            chosen = np.flatnonzero(of_part == part)
            sources[chosen], numbers[chosen] = self._parts[part].numbers(samples[chosen])
        return sources, numbers


class _LaidOut:
    """A part with the layout of its period."""

    def __init__(self, part: Part, before: np.ndarray) -> None:
        """Lay out a part before which there were `before` samples of each source."""
        self._first, self._before = part.first_sample, before
        self._weights = np.array(part.weights, dtype=np.int64)
        self._layout = quota.layout(part.weights).astype(np.int64)
        self._ranks = np.empty(len(self._layout), dtype=np.int64)
        """How many samples of the same source there are before each sample of the period."""
        self._places = [np.flatnonzero(self._layout == source) for source in range(len(part.weights))]
        """The places of each source in the period."""
        for places in self._places:
            self._ranks[places] = np.arange(len(places))

    def numbers(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        periods, places = np.divmod(samples - self._first, len(self._layout))
        sources = self._layout[places]
        return sources, self._before[sources] + periods * self._weights[sources] + self._ranks[places]

    def counts(self, num_samples: int) -> np.ndarray:
        periods, place = divmod(num_samples - self._first, len(self._layout))
        begun = [np.searchsorted(places, place) for places in self._places]
        return self._before + periods * self._weights + np.array(begun)
