"""The learning rate as a function of the step alone."""

import math

from modules.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of a step, counted from 0: a pure function, so a resumed run gets the same rates.

    Step s of the warm-up has `learning_rate * (s + 1) / warmup_steps`. After it, the rate falls to
    `min_learning_rate` at the last step, `num_steps - 1`, and stays there: `cosine` (Loshchilov and Hutter 2017,
    arXiv 1608.03983), `linear`, or `wsd`, which is constant until the last `decay_fraction` of all steps and then
    linear (Hu et al. 2024, arXiv 2404.06395). `constant` never falls.
    """
    highest, lowest = config.learning_rate, config.min_learning_rate
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    start = decay_start(config, num_steps)
    if start is None or step < start:
        return highest
    # The step before the decay has the highest rate, so step `start` is the first one below it.
    done = min(1.0, (step - start + 1) / max(1, num_steps - start))
    share = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return lowest + (highest - lowest) * share


def decay_start(config: OptimizerConfig, num_steps: int) -> int | None:
    """Return the first step whose learning rate depends on `num_steps`; None if there is none."""
    if config.schedule == "constant":
        return None
    if config.schedule == "wsd":
        return max(config.warmup_steps, round(num_steps * (1 - config.decay_fraction)))
    return config.warmup_steps
