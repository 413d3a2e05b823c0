"""Asynchronous successive halving: which trials of a sweep are stopped early, as Ray Tune decides.

Only Tune's scheduler is used. It is given the metrics that the trials have recorded, so that it is rebuilt from these
after a restart; Tune's own records are pickles.
"""

import math
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler


class Asha:
    """Compares trials at a growing number of steps, and lets the better part of them go on."""

    def __init__(self, max_steps: int, grace_period: int, reduction_factor: float) -> None:
        self._scheduler: Any = AsyncHyperBandScheduler(
            time_attr="step",
            metric="metric",
            mode="min",
            max_t=max_steps,
            grace_period=min(grace_period, max_steps),
            reduction_factor=reduction_factor,
            stop_last_trials=False,
        )
        self._trials: dict[str, Any] = {}

    def stops(self, trial: str, step: int, score: float) -> bool:
        """Take a trial's score at a step, less being better, and return whether the trial is to stop.

        What was taken before changes nothing, so a trial that goes on may give its steps again.
        """
        if not math.isfinite(score):
            return True
        if trial not in self._trials:
            self._trials[trial] = SimpleNamespace(trial_id=trial)
            self._scheduler.on_trial_add(None, self._trials[trial])
        result = {"step": step, "metric": score}
        return self._scheduler.on_trial_result(None, self._trials[trial], result) == TrialScheduler.STOP
