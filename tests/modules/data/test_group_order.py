import numpy as np
import pytest

from modules.data.group_order import GroupOrder, GroupSettings
from modules.data.sampler import WindowOrder

LENGTH = 4
SIZES = [5, 9, 100, 103, 1000, 4321, 16 * 12 * 4 + 5, 16 * 12 * 4 + 9]


def order_of(num_tokens, block_tokens=16, group_blocks=3, seed=3):
    return GroupOrder(num_tokens, LENGTH, seed, GroupSettings(block_tokens, group_blocks))


def epoch_of(order, epoch):
    return order.starts(epoch * order.num_windows + np.arange(order.num_windows))


@pytest.mark.parametrize("num_tokens", SIZES)
@pytest.mark.parametrize("block_tokens", [1, 4, 16, 50])
def test_an_epoch_has_every_window_of_the_ungrouped_order_once(num_tokens, block_tokens):
    order, whole = order_of(num_tokens, block_tokens), WindowOrder(num_tokens, LENGTH, seed=3)
    assert order.num_windows == whole.num_windows
    for epoch in range(5):
        assert np.array_equal(np.sort(epoch_of(order, epoch)), np.sort(epoch_of(whole, epoch)))


@pytest.mark.parametrize("num_tokens", SIZES)
def test_random_access_equals_reading_in_order(num_tokens):
    order = order_of(num_tokens)
    samples = np.arange(3 * order.num_windows)
    starts = order.starts(samples)
    mixed = np.random.default_rng(0).permutation(samples)
    assert np.array_equal(order.starts(mixed), starts[mixed])
    assert [int(order.starts(samples[n : n + 1])[0]) for n in samples[::7]] == starts[::7].tolist()


@pytest.mark.parametrize("num_tokens", SIZES)
def test_windows_come_from_one_group_of_blocks_after_the_other(num_tokens):
    order = order_of(num_tokens)
    for epoch in range(4):
        samples = epoch * order.num_windows + np.arange(order.num_windows)
        groups, starts = order.groups(samples), order.starts(samples)
        assert np.array_equal(groups, np.sort(groups))
        offset = starts.min()
        blocks = [set(((starts[groups == group] - offset) // LENGTH // 4).tolist()) for group in np.unique(groups)]
        assert sum(map(len, blocks)) == len(set.union(*blocks))
        # the last one has the windows after the last whole block as well
        assert all(len(found) == 3 for found in blocks[:-1])
        assert len(blocks[-1]) <= 4


def test_epochs_and_seeds_have_other_groups_and_other_orders_within_them():
    found = {tuple(epoch_of(order_of(4321, seed=seed), epoch) // LENGTH) for seed in (3, 4) for epoch in (0, 1)}
    assert len(found) == 4
    first = [set(list(windows)[:12]) for windows in found]
    assert all(a != b for a in first for b in first if a is not b)


def test_the_windows_of_a_group_are_mixed():
    starts = epoch_of(order_of(100_000, block_tokens=400, group_blocks=10), 0)[:1000]
    neighbours = np.abs(np.diff(starts)) == LENGTH
    assert neighbours.sum() < 20  # 2 expected


def test_a_late_sample_costs_what_an_early_one_does():
    order = GroupOrder(10**11, 1024, 3, GroupSettings(2**19, 64))
    late = order.starts(np.array([2**61]))
    assert 0 <= late[0] < 10**11
