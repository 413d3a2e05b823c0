"""The settings of a sweep whose trials run side by side: `--multirun sweep=METHOD`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from modules.config import Config, Identity, Runtime, Seed, Steps
from orchestrator.configuration.groups import BestMetric, TaskMetric
from orchestrator.configuration.names import PipelineName

MOST_TRIALS = 10_000


class SweepConfig(Config):
    """Which trials a sweep has, and what it compares them by."""

    method: Identity[Literal["grid", "random", "asha"]]
    """`grid`: every combination; `random`: drawn; `asha`: drawn, and the worse ones are stopped early."""
    name: Runtime[PipelineName | None] = None
    """The first part of the names of its runs, before the slash; null: made of the command and its overrides."""
    num_trials: Runtime[Annotated[int, Field(gt=0, le=MOST_TRIALS)] | None] = None
    """Trials that are drawn; more of them later leaves the first ones as they are."""
    seed: Identity[Seed] = 0
    """Of the drawn values."""
    metric: Identity[BestMetric | TaskMetric | None] = None
    """The metric that trials are compared by; null takes the one by which each run chooses its best checkpoint."""
    min_steps: Identity[Steps | None] = None
    """`asha` stops no trial before so many steps; null takes a ninth of the largest training.num_steps."""
    reduction_factor: Identity[Annotated[float, Field(gt=1, le=1000)]] = 3.0
    """`asha` lets one of so many trials go on at each of its comparisons."""

    @model_validator(mode="after")
    def _number_of_trials_is_known_once(self) -> Self:
        if self.method == "grid" and self.num_trials is not None:
            raise ValueError("num_trials is for sweep=random and sweep=asha; a grid has all its combinations")
        if self.method != "grid" and self.num_trials is None:
            raise ValueError(f"sweep={self.method} needs sweep.num_trials=NUMBER")
        return self


class AnySweep(Config):
    """The overrides that begin with `sweep`."""

    sweep: SweepConfig
