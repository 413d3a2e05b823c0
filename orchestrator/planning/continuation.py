"""When a run may be continued with another number of steps: if all steps that it has done are the same with both."""

import copy
from typing import Any

from pydantic import ValidationError

from modules.config import ObjectiveConfig, OptimizerConfig
from modules.phases import phase_ends
from modules.schedule import decay_start


def is_same_but_for_length(begun: dict[str, Any], requested: dict[str, Any]) -> bool:
    """Return whether two recipes differ in the number of steps and in the lengths of phases alone."""
    return begun != requested and _without_lengths(begun) == _without_lengths(requested)


def obstacle(begun: dict[str, Any], requested: dict[str, Any], num_done: int) -> str:
    """Return why a run of `num_done` steps cannot be continued with a recipe of another length; empty if it can."""
    try:
        old, new = _Schedule(begun), _Schedule(requested)
    except (ValidationError, KeyError, TypeError):
        return "its recipe is of another version"
    if num_done > new.num_steps:
        return f"it has done {num_done} steps already"
    first = min((start for start in (old.decay_start, new.decay_start) if start is not None), default=num_done)
    if num_done > first:
        cause = f"from step {first} on the learning rate of optimizer.schedule={old.optimizer.schedule} depends on it"
    elif old.phases_before(num_done) != new.phases_before(num_done):
        cause = "with it, phases that it has done would end after other steps"
    else:
        return ""
    return f"it has done {num_done} steps, and {cause}"


class _Schedule:
    """What a recipe says about each step."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self.num_steps: int = recipe["training"]["num_steps"]
        self.optimizer = OptimizerConfig.model_validate(recipe["optimizer"])
        self.objective = ObjectiveConfig.model_validate(recipe["objective"]) if "objective" in recipe else None
        self.decay_start = decay_start(self.optimizer, self.num_steps)

    def phases_before(self, step: int) -> list[int]:
        """Return the ends of the phases, as far as they lie before `step`."""
        ends = phase_ends(self.objective, self.num_steps) if self.objective else []
        return [end for end in ends if end < step]


def _without_lengths(recipe: dict[str, Any]) -> dict[str, Any]:
    rest = copy.deepcopy(recipe)
    rest.get("training", {}).pop("num_steps", None)
    for phase in rest.get("objective", {}).get("phases", ()):
        for length in ("steps", "fraction"):
            phase.pop(length, None)
    return rest
