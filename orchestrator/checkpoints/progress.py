"""The progress of a run as stored in a checkpoint: everything that is not a tensor."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from orchestrator.distributed.loss_scale import LossScale


@dataclass(frozen=True)
class GuardState:
    """The state on which the guard's decisions depend; stored in checkpoints."""

    grad_norms: tuple[float, ...] = ()
    """Gradient norms of the newest steps that were not skipped, oldest first."""
    num_skipped: int = 0
    """Steps skipped since the run began."""
    num_in_a_row: int = 0
    """Steps skipped since the last good one."""
    num_rollbacks: int = 0
    """Rollbacks since the run began."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Return the state from its JSON fields."""
        return cls(**{**fields, "grad_norms": tuple(fields["grad_norms"])})


@dataclass(frozen=True)
class Progress:
    """The progress of a run. Schedule and phase follow from the step, the data from step and data offset."""

    step: int
    """Finished steps, including skipped ones."""
    tokens: int
    """Tokens seen, over all workers."""
    loss_scale: LossScale | None = None
    """Only with float16."""
    data_offset: int = 0
    """Data steps that were skipped: step s uses the data of step s + data_offset."""
    guard: GuardState = field(default_factory=GuardState)
    scores: dict[int, float] = field(default_factory=dict)
    """Scores of earlier checkpoints by step; lower is better."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last finished step, by name; a run that is interrupted after it still reports them."""
    precision: str | None = None
    """`training.precision` of the steps before; None in checkpoints of versions that did not record it."""
    source_tokens: dict[str, int] = field(default_factory=dict)
    """`tokens` by the source of a mixture."""

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return the progress that `to_json` has written."""
        fields = json.loads(data)
        fields["guard"] = GuardState.from_json(fields["guard"])
        fields["loss_scale"] = LossScale(**fields["loss_scale"]) if fields["loss_scale"] else None
        fields["scores"] = {int(step): score for step, score in fields["scores"].items()}
        return cls(**fields)

    def to_json(self) -> str:
        """Return the progress as JSON."""
        return json.dumps(asdict(self), indent=2)

    def changed_meaning(self, precision: str) -> str | None:
        """Return what changes from here on, if this checkpoint was written when `precision` meant something else."""
        if self.precision is not None or precision not in ("bf16", "16"):
            return None
        return (
            f"the checkpoint after step {self.step} is of an earlier version, whose ZeRO strategies trained "
            f"training.precision={precision} with half-precision weights and gradients; from here on both are float32 "
            f"under every strategy. In a new run, {precision}-true trains as ZeRO did before"
        )

    @property
    def optimizer_steps(self) -> int:
        """Steps that have changed the weights."""
        return self.step - self.guard.num_skipped
