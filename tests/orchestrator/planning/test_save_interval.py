"""The formulas for saves and faults, compared with a model of lost time."""

import pytest

from orchestrator.planning.save_interval import goodput_bound, young_seconds


def lost(interval: float, cost: float, mtbf: float) -> float:
    """Return the share of time that goes into saves, and into steps lost half an interval before a fault."""
    return cost / interval + interval / (2 * mtbf)


def test_youngs_interval_loses_least() -> None:
    best = young_seconds(2.0, 500.0)
    assert lost(best, 2.0, 500.0) < min(lost(0.99 * best, 2.0, 500.0), lost(1.01 * best, 2.0, 500.0))


def test_goodput_bound_is_what_youngs_interval_and_the_restarts_leave() -> None:
    cost, mtbf, recovery = 0.5, 200.0, 4.0
    expected = 1 - lost(young_seconds(cost, mtbf), cost, mtbf) - recovery / mtbf
    assert goodput_bound(cost, mtbf, recovery) == pytest.approx(expected, rel=1e-12)
