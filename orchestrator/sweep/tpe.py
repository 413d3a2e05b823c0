"""The only module that speaks to Optuna: what a sweep tries next, by TPE, from what its trials have reached.

A study is made anew in memory for each suggestion, from our own records, and the sampler's seed is a function of the
sweep's seed and the trial's number. So a suggestion depends on the records alone, and a restart makes the same one.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.sweep.space import Interval, Items, Setting
from orchestrator.sweep.suggestions import Tried


class Tpe:
    """Suggests values by a tree-structured Parzen estimator (Bergstra et al. 2011)."""

    def __init__(self, settings: Sequence[Setting], seed: int, num_startup_trials: int) -> None:
        self._distributions = {one.name: _distribution(one.values) for one in settings}
        self._seed, self._num_startup_trials = seed, num_startup_trials

    def suggest(self, number: int, tried: Sequence[Tried]) -> dict[str, float]:
        """Return a value, or its position, for each setting.

        Args:
            number: Of the trial.
            tried: The trials before it.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = random.Random(f"{self._seed}/{number}").getrandbits(32)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._num_startup_trials)
        study = optuna.create_study(sampler=sampler)
        for one in tried:
            study.add_trial(self._recorded(one))
        return study.ask(self._distributions).params

    def _recorded(self, one: Tried) -> Any:
        """Return a trial as the study knows it; what diverged is worse than all others, which pruned ones are."""
        given: Mapping[str, Any] = {"params": dict(one.values), "distributions": self._distributions}
        if one.is_running:
            return create_trial(state=TrialState.RUNNING, **given)
        if one.score is None:
            return create_trial(state=TrialState.PRUNED, **given)
        return create_trial(value=one.score, **given)


def _distribution(values: Interval | Items) -> BaseDistribution:
    if isinstance(values, Items):
        positions = range(values.number)
        return IntDistribution(0, values.number - 1) if values.is_ordered else CategoricalDistribution(positions)
    if values.is_whole:
        return IntDistribution(round(values.start), round(values.end), log=values.is_log)
    return FloatDistribution(values.start, values.end, log=values.is_log)
