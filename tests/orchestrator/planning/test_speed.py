"""Published runs that had no part in the fit are predicted within what was asked for."""

import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from bench_plan_throughput import errors, published

from orchestrator.planning.speed import ERROR


def test_published_runs_that_were_not_fitted_are_predicted() -> None:
    found = sorted(abs(error) for error in errors(published()[1::2]))
    assert len(found) > 100
    assert statistics.median(found) < 0.05
    assert found[int(0.9 * len(found))] <= ERROR


def test_other_programs_runs_are_of_the_same_size() -> None:
    assert [abs(error) < 0.35 for error in errors(published(others=True))] == [True, True]


def test_every_row_names_where_it_is_from() -> None:
    assert {run.source for run in [*published(), *published(others=True)]} == {"llm-foundry", "nanochat", "Megatron-LM"}
    assert all(run.tokens_per_second_per_device == pytest.approx(run.predicted(), rel=0.5) for run in published())
