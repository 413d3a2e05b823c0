"""Phases of pretraining: the weights of the objectives, as a function of the step alone."""

from modules.config import ObjectiveConfig


def phase_of_step(config: ObjectiveConfig, step: int, num_steps: int) -> int:
    """Return the index of the one phase that a step, counted from 0, belongs to; from `num_steps` on it is the last.

    A phase ends at the sum of the lengths up to and including its own, rounded to the nearest step (halves up). A
    fraction is relative to `num_steps`. A phase shorter than half a step can get no step at all.
    """
    ends = phase_ends(config, num_steps)
    return next((number for number, end in enumerate(ends) if step < end), len(ends) - 1)


def phase_ends(config: ObjectiveConfig, num_steps: int) -> list[int]:
    """Return the step after the last one of each phase; for the last phase it is `num_steps`."""
    ends, total = [], 0.0
    for phase in config.phases:
        total += phase.steps if phase.steps is not None else (phase.fraction or 0.0) * num_steps
        # rounding errors, far below 1e-6 steps, can put a sum of fractions just below a half
        ends.append(min(int(total + 0.5 + 1e-6), num_steps))
    return [*ends[:-1], num_steps]


def objective_weights(config: ObjectiveConfig, step: int, num_steps: int) -> dict[str, float]:
    """Return the weights of the objectives, `clm` and `mlm`, in a step; those of weight 0 are left out."""
    weights = config.phases[phase_of_step(config, step, num_steps)].weights
    return {name: weight for name, weight in weights.items() if weight > 0}
