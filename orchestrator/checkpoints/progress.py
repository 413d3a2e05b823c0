"""How far a run is, as a checkpoint keeps it: all that is not a tensor."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from orchestrator.distributed.loss_scale import LossScale


@dataclass(frozen=True)
class GuardState:
    """All that a decision depends on beside the step itself; a checkpoint keeps it."""

    grad_norms: tuple[float, ...] = ()
    """Gradient norms of the newest steps that were not skipped, oldest first."""
    num_skipped: int = 0
    """Steps skipped since the run began."""
    num_in_a_row: int = 0
    """Steps skipped since the last good one."""
    num_rollbacks: int = 0
    """How often the run has gone back since it began."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Return it from its fields, as JSON keeps them."""
        return cls(**{**fields, "grad_norms": tuple(fields["grad_norms"])})


@dataclass(frozen=True)
class Progress:
    """How far the run is; all else (schedule, phase, and with the offset data) follows from the step."""

    step: int
    """Finished steps, those skipped among them."""
    tokens: int
    """Tokens seen, over all workers."""
    loss_scale: LossScale | None = None
    """With float16 only."""
    data_offset: int = 0
    """Steps of data that were passed over: step s has the data of step s + data_offset."""
    guard: GuardState = field(default_factory=GuardState)
    scores: dict[int, float] = field(default_factory=dict)
    """How good earlier checkpoints are, by their step; lower is better."""

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return what `to_json` has written."""
        fields = json.loads(data)
        fields["guard"] = GuardState.from_json(fields["guard"])
        fields["loss_scale"] = LossScale(**fields["loss_scale"]) if fields["loss_scale"] else None
        fields["scores"] = {int(step): score for step, score in fields["scores"].items()}
        return cls(**fields)

    def to_json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(asdict(self), indent=2)

    @property
    def optimizer_steps(self) -> int:
        """Steps that have moved the weights."""
        return self.step - self.guard.num_skipped
