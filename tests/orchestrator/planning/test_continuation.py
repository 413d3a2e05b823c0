"""A run goes on with another number of steps exactly if every step that it has done is the same with both."""

import itertools
from typing import Any

import pytest

from modules.config import ObjectiveConfig, OptimizerConfig
from modules.phases import objective_weights
from modules.schedule import learning_rate
from orchestrator.planning.continuation import is_same_but_for_length, obstacle

ONE = [{"weights": {"clm": 1.0}, "fraction": 1.0}]
HALVES = [{"weights": {"clm": 1.0}, "fraction": 0.5}, {"weights": {"mlm": 1.0}, "fraction": 0.5}]


def steps(first: int, second: int) -> list[dict[str, Any]]:
    return [{"weights": {"clm": 1.0}, "steps": first}, {"weights": {"mlm": 1.0}, "steps": second}]


def recipe(num_steps: int, schedule: str = "constant", phases: Any = ONE, warmup_steps: int = 3) -> dict[str, Any]:
    optimizer = OptimizerConfig(schedule=schedule, warmup_steps=warmup_steps)  # type: ignore[arg-type]
    objective = ObjectiveConfig.model_validate({"phases": phases})
    groups = {"optimizer": optimizer.model_dump(mode="json"), "objective": objective.model_dump(mode="json")}
    return {"training": {"num_steps": num_steps, "sequence_length": 8}, "seed": 1, **groups}


def done(made: dict[str, Any], num_done: int) -> list[tuple[float, dict[str, float]]]:
    """Return learning rate and weights of each step that was done."""
    optimizer = OptimizerConfig.model_validate(made["optimizer"])
    objective, num_steps = ObjectiveConfig.model_validate(made["objective"]), made["training"]["num_steps"]
    return [
        (learning_rate(optimizer, step, num_steps), objective_weights(objective, step, num_steps))
        for step in range(num_done)
    ]


@pytest.mark.parametrize("schedule", ["constant", "wsd", "cosine", "linear"])
@pytest.mark.parametrize("phases", [(ONE, ONE), (HALVES, HALVES), (steps(8, 12), steps(8, 22))], ids=["1", "2", "3"])
def test_it_goes_on_exactly_if_no_step_that_was_done_would_change(schedule: str, phases: tuple[Any, Any]) -> None:
    seen = set()
    for (old, new), num_done in itertools.product([(20, 30), (30, 20), (20, 22)], range(31)):
        if num_done > old:
            continue
        begun, requested = recipe(old, schedule, phases[0]), recipe(new, schedule, phases[1])
        same = num_done <= new and done(begun, num_done) == done(requested, num_done)
        assert (obstacle(begun, requested, num_done) == "") == same, (old, new, num_done)
        seen.add(same)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("schedule", "num_done", "part"),
    [
        (
            "cosine",
            12,
            "it has done 12 steps, and from step 3 on the learning rate of optimizer.schedule=cosine depends",
        ),
        ("wsd", 20, "from step 16 on"),
        ("constant", 40, "it has done 40 steps already"),
    ],
)
def test_the_reason_names_what_depends_on_the_number_of_steps(schedule: str, num_done: int, part: str) -> None:
    assert part in obstacle(recipe(20, schedule), recipe(30, schedule), num_done)


def test_nothing_but_lengths_may_differ() -> None:
    begun = recipe(20)
    assert is_same_but_for_length(begun, recipe(30))
    assert is_same_but_for_length(recipe(20, phases=steps(8, 12)), recipe(30, phases=steps(8, 22)))
    assert not is_same_but_for_length(begun, begun)
    assert not is_same_but_for_length(begun, {**recipe(30), "seed": 2})
    assert not is_same_but_for_length(begun, recipe(30, warmup_steps=4))


def test_recipe_of_another_version_is_no_reason_for_a_traceback() -> None:
    assert obstacle({"training": {"num_steps": 1}}, recipe(30), 1) == "its recipe is of another version"
