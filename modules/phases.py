"""Phases of pretraining: which objectives count in a step, and how much. A function of the step alone."""

from modules.config import ObjectiveConfig


def phase_of_step(config: ObjectiveConfig, step: int, num_steps: int) -> int:
    """Number of the phase that a step, counted from 0, belongs to: exactly one, and the last from `num_steps` on.

    A phase ends where the lengths so far add up to, rounded to the nearest step (halves up). A fraction is one of
    `num_steps`. A phase shorter than half a step can be left with no step at all.
    """
    ends = phase_ends(config, num_steps)
    return next((number for number, end in enumerate(ends) if step < end), len(ends) - 1)


def phase_ends(config: ObjectiveConfig, num_steps: int) -> list[int]:
    """The step after the last one of each phase; that of the last phase is `num_steps`."""
    ends, total = [], 0.0
    for phase in config.phases:
        total += phase.steps if phase.steps is not None else (phase.fraction or 0.0) * num_steps
        # a sum of fractions misses a half by a rounding error, far below 1e-6 steps
        ends.append(min(int(total + 0.5 + 1e-6), num_steps))
    return [*ends[:-1], num_steps]


def objective_weights(config: ObjectiveConfig, step: int, num_steps: int) -> dict[str, float]:
    """Weights of the objectives, `clm` and `mlm`, that count in a step; those of weight 0 are left out."""
    weights = config.phases[phase_of_step(config, step, num_steps)].weights
    return {name: weight for name, weight in weights.items() if weight > 0}
