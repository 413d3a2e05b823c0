"""What a sweep has found."""

import math
import random

import pytest
from scipy.stats import spearmanr

from orchestrator.sweep.findings import best, learned
from orchestrator.sweep.trial import Outcome, Trial

TRIALS = [Trial(number, (), {"rate": rate, "size": "s" if number < 2 else "m"}) for number, rate in enumerate("1234")]


def outcomes(*values: float) -> dict[int, Outcome]:
    return {number: Outcome("done", {10: 9.0, 20: value}) for number, value in enumerate(values)}


@pytest.mark.parametrize(("metric", "number"), [("val/loss_clm", 2), ("val/accuracy", 3)])
def test_the_best_trial_is_that_of_the_best_last_value(metric: str, number: int) -> None:
    found = best(TRIALS, outcomes(0.5, 0.4, 0.3, 0.6), metric)
    assert found is TRIALS[number]


def test_trials_that_diverged_or_are_not_done_are_never_the_best() -> None:
    found = outcomes(math.nan, 0.4, 0.3, 0.1)
    found[3].state = "stopped"
    found[2].state = "failed"
    assert best(TRIALS, found, "val/loss_clm") is TRIALS[1]
    assert best(TRIALS, {one.number: Outcome() for one in TRIALS}, "val/loss_clm") is None


def test_what_was_learned_is_a_rank_correlation_for_numbers_and_means_for_words() -> None:
    assert learned(TRIALS, outcomes(8.0, 4.0, 2.0, 1.0), "val/loss_clm") == (
        "rank correlation with val/loss_clm over 4 trials: rate -1.00, size (means m 1.5, s 6)"
    )


@pytest.mark.parametrize("ties", [False, True])
def test_a_rank_correlation_is_that_of_scipy(ties: bool) -> None:
    draw = random.Random(7)
    rates = [f"{draw.choice([1, 2, 4]) if ties else 10 ** draw.uniform(-4, -2):.6g}" for _ in range(12)]
    values = [round(abs(math.log10(float(rate)) + 3) + draw.uniform(0, 1), 1 if ties else 6) for rate in rates]
    trials = [Trial(number, (), {"rate": rate}) for number, rate in enumerate(rates)]
    expected = spearmanr([float(rate) for rate in rates], values).statistic
    assert learned(trials, outcomes(*values), "val/loss_clm").endswith(f"over 12 trials: rate {expected:+.2f}")


def test_equal_metrics_teach_nothing() -> None:
    assert "rate unknown" in learned(TRIALS, outcomes(1.0, 1.0, 1.0, 1.0), "val/loss_clm")
    assert learned(TRIALS[:2], outcomes(1.0, 2.0), "val/loss_clm").startswith("2 trials have ended, too few")


def test_a_trial_that_was_stopped_early_counts_in_what_was_learned() -> None:
    found = outcomes(8.0, 4.0, 2.0, 1.0)
    found[0].state = "stopped"
    assert "over 4 trials: rate -1.00" in learned(TRIALS, found, "val/loss_clm")
    found[0].state = "failed"
    assert "over 3 trials" in learned(TRIALS, found, "val/loss_clm")
