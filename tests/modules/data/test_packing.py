from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.data.packing import pack, pack_in_order

LENGTH = 20
some_lengths = st.lists(st.integers(1, LENGTH), max_size=60).map(lambda values: np.array(values, dtype=np.int64))
both_ways = pytest.mark.parametrize("way", [pack, pack_in_order])


def totals(plan: tuple[np.ndarray, np.ndarray], lengths: np.ndarray) -> list[int]:
    """The tokens in each pack."""
    order, starts = plan
    return [int(lengths[order[a:b]].sum()) for a, b in pairwise(starts)]


def best_fit_decreasing(lengths: np.ndarray) -> list[int]:
    """The tokens in each pack, one example after the other."""
    packs: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [total for total in packs if total + length <= LENGTH]
        total = max(fitting, default=0)
        if fitting:
            packs.remove(total)
        packs.append(total + length)
    return sorted(packs)


@both_ways
@settings(max_examples=60)
@given(lengths=some_lengths)
def test_each_example_is_in_one_pack_and_no_pack_is_empty_or_too_long(way, lengths: np.ndarray) -> None:
    order, starts = way(lengths, LENGTH)
    assert order.dtype == starts.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (starts[0], starts[-1]) == (0, len(lengths))
    assert all(0 < total <= LENGTH for total in totals((order, starts), lengths))


@settings(max_examples=60)
@given(lengths=some_lengths)
def test_packs_are_those_of_best_fit_one_by_one(lengths: np.ndarray) -> None:
    assert sorted(totals(pack(lengths, LENGTH), lengths)) == best_fit_decreasing(lengths)


@settings(max_examples=60)
@given(lengths=some_lengths)
def test_packs_in_order_hold_as_many_neighbours_as_fit(lengths: np.ndarray) -> None:
    order, starts = pack_in_order(lengths, LENGTH)
    assert order.tolist() == list(range(len(lengths)))
    for total, after in zip(totals((order, starts), lengths), starts[1:-1], strict=False):
        assert total + lengths[after] > LENGTH


@pytest.mark.parametrize("sequence_length", [256, 512, 1024])
def test_at_most_a_hundredth_of_the_positions_is_empty_where_lengths_are_as_in_dialogues(sequence_length: int) -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 20_000).astype(np.int64).clip(1, sequence_length)
    order, starts = pack(lengths, sequence_length)
    assert 1 - lengths.sum() / ((len(starts) - 1) * sequence_length) < 0.01
    again = pack(lengths, sequence_length)
    assert np.array_equal(order, again[0])
    assert np.array_equal(starts, again[1])


@both_ways
@pytest.mark.parametrize("length", [0, LENGTH + 1])
def test_examples_that_fit_no_pack_are_refused(way, length: int) -> None:
    with pytest.raises(ValueError, match="do not fit packs of 20 tokens"):
        way(np.array([3, length]), LENGTH)
