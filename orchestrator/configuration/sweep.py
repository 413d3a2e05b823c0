"""The settings of a sweep whose trials run side by side: `--multirun sweep=METHOD`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from modules.config import Config, Count, Identity, Runtime, Seed, Steps
from orchestrator.configuration.groups import BestMetric, TaskMetric
from orchestrator.configuration.names import PipelineName

MOST_TRIALS = 10_000
_DRAWN = ("random", "asha", "optuna")
_METHODS_OF = {
    "num_trials": _DRAWN,
    "seed": _DRAWN,
    "grace_period": ("asha",),
    "reduction_factor": ("asha",),
    "num_startup_trials": ("optuna",),
}
"""Who reads a field that not all methods read."""


class SweepConfig(Config):
    """Which trials a sweep has, and what it compares them by."""

    method: Identity[Literal["grid", "random", "asha", "optuna"]]
    """`grid`: every combination; `random`: drawn; `asha`: the same, worse ones stopped early; `optuna`: by TPE."""
    name: Runtime[PipelineName | None] = None
    """The first part of the names of its runs, before the slash; null: made of the command and its overrides."""
    num_trials: Runtime[Annotated[int, Field(gt=0, le=MOST_TRIALS)] | None] = None
    """Trials that are drawn; more of them later leaves the first ones as they are."""
    seed: Identity[Seed] = 0
    """Of the drawn values."""
    metric: Identity[BestMetric | TaskMetric | None] = None
    """The metric that trials are compared by; null takes the one by which each run chooses its best checkpoint."""
    grace_period: Identity[Steps | None] = None
    """`asha` stops no trial before so many steps; null takes a ninth of the largest training.num_steps."""
    reduction_factor: Identity[Annotated[float, Field(gt=1, le=1000)]] = 3.0
    """`asha` lets one of so many trials go on at each of its comparisons, each after so many times the steps."""
    num_startup_trials: Identity[Count] = 10
    """`optuna` draws so many trials at random before it suggests any."""

    @model_validator(mode="after")
    def _fields_belong_to_the_method(self) -> Self:
        for name, methods in _METHODS_OF.items():
            if self.method not in methods and getattr(self, name) != type(self).model_fields[name].default:
                names = " and ".join(f"sweep={method}" for method in methods)
                raise ValueError(f"{name} is for {names}; leave it out with sweep={self.method}")
        if self.method in _DRAWN and self.num_trials is None:
            raise ValueError(f"sweep={self.method} needs sweep.num_trials=NUMBER")
        return self


class AnySweep(Config):
    """The settings of a sweep alone."""

    sweep: SweepConfig
