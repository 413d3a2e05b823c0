"""Thinned curves and round axes."""

import math
import random

import pytest

from orchestrator.report.curves import axis, step_axis, thinned


def test_ten_thousand_points_are_thinned_and_no_spike_is_lost() -> None:
    random.seed(0)
    points = [(float(x), random.gauss(2, 0.1)) for x in range(10_000)]
    points[1234], points[7777] = (1234.0, 9.0), (7777.0, -5.0)
    (line,) = thinned(points, 0, 10_000, 400)
    assert len(line) <= 4 * 400
    assert {points[1234], points[7777], points[0], points[-1]} <= set(line)
    assert line == sorted(line)
    for column in range(400):
        all_y, kept = ([y for x, y in some if x // 25 == column] for some in (points, line))
        assert (min(all_y), max(all_y)) == (min(kept), max(kept))


def test_few_points_are_all_kept_and_values_that_are_not_finite_leave_gaps() -> None:
    points = [(1, 1.0), (2, math.nan), (3, 3.0), (4, 4.0), (5, math.inf), (6, math.nan), (7, 7.0)]
    assert thinned(points, 0, 10, 100) == [[(1, 1.0)], [(3, 3.0), (4, 4.0)], [(7, 7.0)]]
    assert thinned(points, 0, 10, 1) == [[(1, 1.0)], [(3, 3.0), (4, 4.0)], [(7, 7.0)]]
    assert thinned([(1, math.nan)], 0, 1, 10) == []


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.3, 4.1], ["0", "1", "2", "3", "4", "5"]),
        ([0, 10_000], ["0", "2k", "4k", "6k", "8k", "10k"]),
        ([0, 3_000_000], ["0", "1M", "2M", "3M"]),
        ([1.51, 1.58], ["1.50", "1.52", "1.54", "1.56", "1.58"]),
        ([0, 1e-3], ["0", "2e-4", "4e-4", "6e-4", "8e-4", "1e-3"]),
        ([7, 7, math.nan], ["2", "4", "6", "8", "10", "12"]),
        ([-0.4, 0.4], ["-0.4", "-0.2", "0.0", "0.2", "0.4"]),
        ([0], ["-0.6", "-0.4", "-0.2", "0.0", "0.2", "0.4", "0.6"]),
    ],
)
def test_axis_has_round_ticks_around_all_values(values: list[float], texts: list[str]) -> None:
    found = axis(values)
    assert found.texts() == texts
    known = [value for value in values if math.isfinite(value)]
    assert found.low <= min(known) + 1e-9
    assert found.high >= max(known) - 1e-9
    assert (found.share(found.low), found.share(found.high)) == (0, 1)


@pytest.mark.parametrize(
    ("last", "texts"),
    [
        (120, ["0", "50", "100"]),
        (400, ["0", "100", "200", "300", "400"]),
        (3, ["0", "1", "2", "3"]),
        (0, ["0", "1"]),
        (1_500_000, ["0.0", "0.5M", "1.0M", "1.5M"]),
    ],
)
def test_axis_of_steps_ends_at_the_last_one_and_has_whole_ticks(last: float, texts: list[str]) -> None:
    found = step_axis(last)
    assert found.texts() == texts
    assert (found.low, found.high) == (0, max(1, last))


def test_values_over_powers_of_ten_get_a_logarithmic_axis_where_that_is_allowed() -> None:
    found = axis([0.02, 1, 350], may_be_logarithmic=True)
    assert found.texts() == ["0.01", "0.1", "1", "10", "100", "1000"]
    assert found.share(1) == pytest.approx(0.4)
    assert not axis([0.02, 350]).is_logarithmic
    assert not axis([0, 350], may_be_logarithmic=True).is_logarithmic
    assert not axis([1, 9], may_be_logarithmic=True).is_logarithmic
