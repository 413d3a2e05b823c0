import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.data.sampler import WindowOrder, keys, permute


def whole(size, key):
    return permute(np.arange(size), size, key)


@pytest.mark.parametrize("size", [*range(1, 140), 255, 256, 257, 1000, 4095, 4096, 4097, 100_003])
def test_permutation_visits_every_index_once(size):
    assert np.array_equal(np.sort(whole(size, 12345)), np.arange(size))


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_permutation_visits_every_index_once_for_any_size_and_key(size, key):
    assert np.array_equal(np.sort(whole(size, key)), np.arange(size))


@settings(max_examples=30)
@given(st.integers(2**40, 2**62), st.integers(0, 2**64 - 1))
def test_permutation_of_huge_sizes_stays_in_range_without_collisions(size, key):
    index = np.unique(np.linspace(0, size - 1, 1000).astype(np.int64).clip(0, size - 1))
    values = permute(index, size, key)
    assert values.min() >= 0
    assert values.max() < size
    assert len(np.unique(values)) == len(index)


def test_permutation_of_one_index_does_not_need_the_others():
    together = whole(1000, 7)
    assert [int(permute(np.array([i]), 1000, 7)[0]) for i in range(0, 1000, 37)] == together[::37].tolist()


def test_a_key_for_each_index_is_the_same_as_each_key_alone():
    index, each_key = np.array([5, 6, 7]), np.array([1, 2, 1], dtype=np.uint64)
    expected = [int(permute(index[i : i + 1], 100, int(each_key[i]))[0]) for i in range(3)]
    assert permute(index, 100, each_key).tolist() == expected


@pytest.mark.parametrize("size", [5, 16, 37, 64])
def test_each_index_goes_everywhere_equally_often(size):
    num_keys = 20_000
    key = keys(1, np.arange(num_keys), 0)
    statistics = []
    for index in (0, 1, size - 1):
        counts = np.bincount(permute(np.full(num_keys, index), size, key), minlength=size)
        statistics.append(((counts - num_keys / size) ** 2 / (num_keys / size)).sum())
    # chi-square with size - 1 degrees of freedom: mean size - 1, standard deviation sqrt(2 (size - 1)); 5 sigma
    assert max(statistics) < size - 1 + 5 * np.sqrt(2 * (size - 1)) + 10


@pytest.mark.parametrize("size", [1000, 65_536, 100_003])
def test_neighbours_are_uncorrelated_at_short_lags(size):
    for key in range(5):
        values = whole(size, key) / size - 0.5
        for lag in (1, 2, 3, 64):
            correlation = 12 * np.mean(values[:-lag] * values[lag:])
            assert abs(correlation) < 5 / np.sqrt(size)


def test_pairs_of_neighbours_fill_the_plane_evenly():
    values = whole(100_000, 99) * 16 // 100_000
    counts = np.bincount(values[:-1] * 16 + values[1:], minlength=256)
    expected = 99_999 / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255)


def test_permutations_of_two_keys_have_nothing_in_common():
    same = np.count_nonzero(whole(10_000, 1) == whole(10_000, 2))
    assert same < 10  # one is expected


def test_keys_differ_between_seeds_numbers_and_streams():
    numbers = np.arange(100)
    every = np.concatenate([keys(seed, numbers, stream) for seed in (0, 1, 2**63 - 1) for stream in range(6)])
    assert len(np.unique(every)) == len(every)


@pytest.mark.parametrize("num_tokens", [5, 6, 7, 8, 9, 100, 101, 103, 1000])
def test_an_epoch_visits_every_window_once_and_stays_within_the_text(num_tokens):
    length = 4
    order = WindowOrder(num_tokens, length, seed=3)
    for epoch in range(10):
        starts = np.sort(order.starts(epoch * order.num_windows + np.arange(order.num_windows)))
        assert np.array_equal(np.diff(starts), np.full(order.num_windows - 1, length))
        assert starts[0] >= 0
        assert starts[-1] + length + 1 <= num_tokens


def test_epochs_come_in_other_orders_and_cut_elsewhere():
    order = WindowOrder(1000, 10, seed=3)
    epochs = [order.starts(epoch * order.num_windows + np.arange(order.num_windows)) for epoch in range(50)]
    assert len({tuple(epoch // 10) for epoch in epochs}) == 50
    assert {int(epoch[0] % 10) for epoch in epochs} == set(range(10))


def test_every_token_is_a_target_within_a_few_epochs():
    order = WindowOrder(103, 10, seed=3)
    seen = np.zeros(103, dtype=bool)
    for start in order.starts(np.arange(order.num_windows * 200)):
        seen[start + 1 : start + 11] = True
    assert seen[1:].all()


def test_a_batch_may_span_epochs():
    order = WindowOrder(100, 10, seed=3)
    samples = np.arange(5 * order.num_windows)
    assert order.starts(samples).tolist() == [int(order.starts(samples[i : i + 1])[0]) for i in samples]


def test_a_late_sample_costs_what_an_early_one_does():
    order = WindowOrder(10**9, 10, seed=3)
    late = order.starts(np.array([2**61]))
    assert 0 <= late[0] < 10**9
