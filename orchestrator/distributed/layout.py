"""Which worker holds which elements of the training state, without a list of every worker's ranges.

Every strategy lays some parameters end to end and cuts that into equal shares, one for each worker: DDP all of them,
ZeRO-1 and 2 those of each group of the optimizer, ZeRO-3 each parameter by itself. So a layout is as large as the model
has parameters, whatever the number of workers.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Parameters that lie end to end, and are cut together."""

    starts: Mapping[str, int]
    """Position of the first element of each parameter."""
    share: int
    """Elements of a worker; that of the last one may be short, or padded."""

    def held_by(self, worker: int, sizes: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
        """Yield what a worker holds: a parameter, its first element, and the one after the last.

        Args:
            sizes: Number of elements of each parameter.
        """
        first, last = worker * self.share, (worker + 1) * self.share
        for name, position in self.starts.items():
            start, stop = (min(max(place - position, 0), sizes[name]) for place in (first, last))
            if start < stop:
                yield name, start, stop


Layout = Sequence[Group]


def end_to_end(sizes: Mapping[str, int], num_workers: int) -> Group:
    """Return all parameters in their order as one group, in as equal shares as there can be."""
    stops = [*itertools.accumulate(sizes.values(), initial=0)]
    return Group(dict(zip(sizes, stops, strict=False)), max(1, -(-stops[-1] // num_workers)))


class Holders:
    """Finds the workers that hold a range of a parameter.

    Args:
        layout: A parameter that is not in it may be held by any worker.
        num_workers: The number of workers that the layout is for.
    """

    def __init__(self, layout: Layout, num_workers: int) -> None:
        self._groups = {name: group for group in layout for name in group.starts}
        self._num_workers = num_workers

    def of(self, parameter: str, start: int, stop: int) -> range:
        """Return the numbers of the workers that hold elements [start, stop) of a parameter."""
        group = self._groups.get(parameter)
        if group is None or start >= stop:
            return range(self._num_workers if group is None else 0)
        first, last = (group.starts[parameter] + element for element in (start, stop - 1))
        return range(first // group.share, min(last // group.share + 1, self._num_workers))
