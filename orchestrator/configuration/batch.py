"""The configuration of `orchestrator batch`."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from modules.config import Config, CountOrZero, Input, Runtime, Steps
from orchestrator.configuration.groups import StorageConfig
from orchestrator.configuration.names import RunName

_HIGHEST = 2**63 - 1


def _as_range(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    found = re.fullmatch(r"\s*(\d{1,19})\s*(?:-\s*(\d{1,19})\s*)?", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a number, or the first and the last as in 100-103")
    first = int(found[1])
    last = int(found[2]) if found[2] else first
    if last < first:
        raise ValueError(f"ends before it begins; write {last}-{first}")
    return first, last


_Number = Annotated[int, Field(ge=0, le=_HIGHEST)]
NumberRange = Annotated[tuple[_Number, _Number], BeforeValidator(_as_range)]
"""The first and the last of some numbers, written as `100-103`, or as a single number."""


def _counts_from_1(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] < 1:
        raise ValueError("steps are counted from 1")
    return value


StepRange = Annotated[NumberRange, AfterValidator(_counts_from_1)]


class SeenRun(Config):
    """A run that exists."""

    name: Input[RunName]
    """The run whose data is shown."""


class MeasuringCheckpoint(Config):
    """A checkpoint of the run, by whose model losses are computed."""

    step: Input[Steps | None] = None
    """The checkpoint after this many steps, also written checkpoint=NUMBER; samples are sorted by loss. Null: none."""


class BatchConfig(Config):
    """`orchestrator batch`: what a run has learned from in a step."""

    run: SeenRun
    step: Runtime[StepRange | None] = None
    """The step, counted from 1 as in curves and messages, or several as in 100-103."""
    sample: Runtime[NumberRange | None] = None
    """Instead of all samples of the step: one, or several as in 352-383; without a step, wherever the run used them."""
    worker: Runtime[CountOrZero | None] = None
    """The samples of one worker alone, counted from 0; null shows those of all."""
    checkpoint: MeasuringCheckpoint = MeasuringCheckpoint()
    output: Runtime[str | None] = None
    """A .jsonl that gets a line for each sample, with whole texts (any fsspec URL); null shows tables."""
    storage: StorageConfig = StorageConfig()


def step_or_sample(config: BatchConfig) -> list[str]:
    """Refuse a question about nothing."""
    if config.step is not None or config.sample is not None:
        return []
    return ["step: must be given, a step of the run; or sample, numbers of samples"]
