"""A training that reads a source too often is refused, with settings that would fit."""

import re

import pytest

from modules.config import ObjectiveConfig, PhaseConfig, SourceConfig
from modules.data.epochs import check_epochs
from modules.data.mixed_data import Schedule
from modules.errors import InputError

LENGTH = 10
TOKENS = [1011, 511]
"""100 windows in an epoch of a, 50 in one of b."""


def schedule(most_of_b: float | None, num_steps: int = 100, **phases: tuple[PhaseConfig, ...]) -> Schedule:
    sources = [SourceConfig(name="a", weight=3), SourceConfig(name="b", weight=1, max_epochs=most_of_b)]
    return Schedule(sources, ObjectiveConfig(**phases), num_steps, global_batch_size=8)


@pytest.mark.parametrize("most", [None, 4.0, 5.0])
def test_as_many_epochs_as_are_allowed_pass(most: float | None) -> None:
    check_epochs(schedule(most), TOKENS, LENGTH)  # 200 of its samples, which are 4 epochs


@pytest.mark.parametrize("most", [3.99, 2.0, 0.5])
def test_a_source_too_small_is_refused_and_each_thing_that_is_said_to_fit_does(most: float) -> None:
    with pytest.raises(InputError) as refused:
        check_epochs(schedule(most), TOKENS, LENGTH)
    said = str(refused.value)
    assert f"source b: the training takes 200 samples of it, which are 4 epochs of 50, and max_epochs={most:g}" in said
    assert "max_epochs=4, " in said
    found = re.search(r"training.num_steps=(\d+), or at least ([\d,]+) tokens of it, not 511", said)
    assert found is not None
    steps, tokens = int(found[1]), int(found[2].replace(",", ""))
    check_epochs(schedule(most, steps), TOKENS, LENGTH)
    with pytest.raises(InputError):
        check_epochs(schedule(most, steps + 1), TOKENS, LENGTH)
    check_epochs(schedule(most), [1011, tokens], LENGTH)
    with pytest.raises(InputError):
        check_epochs(schedule(most), [1011, tokens - 1], LENGTH)


def test_phases_count_together_and_a_length_is_named_only_where_all_phases_follow_it() -> None:
    phases = (
        PhaseConfig(weights={"clm": 1}, steps=50, data_weights={"a": 1}),
        PhaseConfig(weights={"clm": 1}, steps=50, data_weights={"b": 1}),
    )
    check_epochs(schedule(8.0, phases=phases), TOKENS, LENGTH)
    with pytest.raises(InputError, match="400 samples of it, which are 8 epochs") as refused:
        check_epochs(schedule(7.9, phases=phases), TOKENS, LENGTH)
    assert "num_steps" not in str(refused.value)


def test_a_bound_below_one_sample_names_no_length() -> None:
    with pytest.raises(
        InputError, match="allows 0; what fits: max_epochs=200, or at most 0 % .* not 25 %, or at least"
    ):
        check_epochs(schedule(0.5), [1011, 21], LENGTH)
