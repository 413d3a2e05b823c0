"""Phases of pretraining as functions of the step."""

import pytest

from modules.config import ObjectiveConfig, PhaseConfig
from modules.phases import objective_weights, phase_ends, phase_of_step

CLM, MLM, BOTH = {"clm": 1.0}, {"mlm": 1.0}, {"clm": 0.5, "mlm": 0.5}


def phases(*phases: tuple[dict[str, float], dict[str, float]]) -> ObjectiveConfig:
    return ObjectiveConfig(phases=tuple(PhaseConfig(weights=weights, **length) for weights, length in phases))


def test_fractions_cut_the_steps_at_the_nearest_one() -> None:
    config = phases((CLM, {"fraction": 0.5}), (MLM, {"fraction": 0.5}))
    assert [phase_of_step(config, step, 5) for step in range(5)] == [0, 0, 0, 1, 1]
    assert [phase_of_step(config, step, 4) for step in range(4)] == [0, 0, 1, 1]


def test_steps_and_fractions_mix() -> None:
    config = phases((CLM, {"steps": 3}), (BOTH, {"fraction": 0.5}), (MLM, {"steps": 2}))
    assert phase_ends(config, 10) == [3, 8, 10]
    assert objective_weights(config, 2, 10) == CLM
    assert objective_weights(config, 3, 10) == BOTH
    assert objective_weights(config, 9, 10) == MLM


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 999, 1000])
def test_every_step_lies_in_one_phase_and_phases_never_return(num_steps: int) -> None:
    config = phases(*[(CLM, {"fraction": 0.1})] * 10)
    numbers = [phase_of_step(config, step, num_steps) for step in range(num_steps)]
    assert numbers == sorted(numbers)
    assert phase_ends(config, num_steps)[-1] == num_steps
    if num_steps % 10 == 0:
        assert [numbers.count(n) for n in range(10)] == [num_steps // 10] * 10


def test_step_after_the_last_belongs_to_the_last_phase() -> None:
    config = phases((CLM, {"fraction": 0.5}), (MLM, {"fraction": 0.5}))
    assert phase_of_step(config, 10, 10) == 1


def test_weights_of_zero_are_left_out() -> None:
    config = phases(({"clm": 1.0, "mlm": 0.0}, {"fraction": 1.0}))
    assert objective_weights(config, 0, 10) == {"clm": 1.0}
