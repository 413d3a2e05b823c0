"""Plans that put whole examples together into packs of bounded length.

A pack is a sample of the global batch. Packs of about the same length give workers about the same work.
"""

from bisect import bisect_left, insort

import numpy as np

Plan = tuple[np.ndarray, np.ndarray]
"""Numbers of the examples, int64 [n], pack after pack; and the place of each pack's first example, int64 [p + 1]."""


def pack(lengths: np.ndarray, sequence_length: int) -> Plan:
    """Return packs of at most `sequence_length` tokens by best fit, the longest example first.

    Each example goes into the pack whose room it fills best. Examples of one length are handled together, as in the
    histogram packing of Krell et al. 2021 (arXiv 2107.02027), so the time grows with the number of distinct lengths;
    only the numbers of the examples are written one by one.

    Args:
        lengths: int64 [n], tokens of each example, from 1 to `sequence_length`.
        sequence_length: Tokens that a pack holds at most.
    """
    _check(lengths, sequence_length)
    counts = np.bincount(lengths, minlength=sequence_length + 1)
    by_length = np.argsort(lengths.astype(np.min_scalar_type(sequence_length)), kind="stable")
    used = np.concatenate([[0], counts.cumsum()])
    parts, sizes = [np.empty(0, dtype=np.int64)], [0]
    for members, count in _kinds_of_packs(counts):
        examples = np.empty((count, len(members)), dtype=np.int64)
        for column, length in enumerate(members):
            examples[:, column] = by_length[used[length] : used[length] + count]
            used[length] += count
        parts.append(examples.ravel())
        sizes += [len(members)] * count
    return np.concatenate(parts), np.cumsum(sizes)


def pack_in_order(lengths: np.ndarray, sequence_length: int) -> Plan:
    """Return packs of neighbouring examples in their order, so that the first packs hold the first examples."""
    _check(lengths, sequence_length)
    ends = lengths.cumsum()
    starts, filled = [0], 0
    while starts[-1] < len(lengths):
        starts.append(int(np.searchsorted(ends, filled + sequence_length, side="right")))
        filled = ends[starts[-1] - 1]
    return np.arange(len(lengths)), np.array(starts)


def pack_totals(values: np.ndarray, plan: Plan) -> np.ndarray:
    """Return the sum of the values [n] of each pack's examples, [p]."""
    order, starts = plan
    return np.add.reduceat(values[order], starts[:-1]) if len(order) else values[:0]


def _kinds_of_packs(counts: np.ndarray) -> list[tuple[tuple[int, ...], int]]:
    """Return the lengths of a pack's members, and the number of such packs, from the number of examples by length."""
    packs: list[tuple[int, tuple[int, ...], int]] = []
    """Room, members and number of packs of a kind, by room: there are at most three kinds a length."""
    for length in np.flatnonzero(counts)[::-1].tolist():
        rest = int(counts[length])
        while rest:
            place = bisect_left(packs, (length,))
            room, members, number = packs.pop(place) if place < len(packs) else (len(counts) - 1, (), rest)
            each = min(room // length, rest)
            filled = min(number, rest // each)
            insort(packs, (room - each * length, members + (length,) * each, filled))
            if members and filled < number:
                insort(packs, (room, members, number - filled))
            rest -= filled * each
    return [(members, number) for _, members, number in packs]


def _check(lengths: np.ndarray, sequence_length: int) -> None:
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= sequence_length:
        raise ValueError(
            f"lengths from {lengths.min()} to {lengths.max()} do not fit packs of {sequence_length} tokens"
        )
