"""Whether a step may move the weights: a decision from its loss, its gradient norm and the norms before it."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Self

from orchestrator.config import LEAST_NORMS, GuardConfig


@dataclass(frozen=True)
class GuardState:
    """All that a decision depends on beside the step itself; a checkpoint keeps it."""

    grad_norms: tuple[float, ...] = ()
    """Gradient norms of the newest steps that were not skipped, oldest first."""
    num_skipped: int = 0
    """Steps skipped since the run began."""
    num_in_a_row: int = 0
    """Steps skipped since the last good one."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Return it from its fields, as JSON keeps them."""
        return cls(**{**fields, "grad_norms": tuple(fields["grad_norms"])})


class StepGuard:
    """Judges step after step. The same figures after the same state give the same verdicts."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self.restore(GuardState())

    def restore(self, state: GuardState) -> None:
        """Go on from `state`."""
        self._norms = deque(state.grad_norms, maxlen=self._config.window_steps)
        self._num_skipped, self._num_in_a_row = state.num_skipped, state.num_in_a_row

    @property
    def state(self) -> GuardState:
        return GuardState(tuple(self._norms), self._num_skipped, self._num_in_a_row)

    @property
    def is_exhausted(self) -> bool:
        """Whether so many steps in a row were bad that the next ones will hardly be better."""
        return self._num_in_a_row >= self._config.max_consecutive

    def judge(self, loss: float, grad_norm: float | None) -> str | None:
        """Return why the step must be skipped, or None for a good one; each step is judged once.

        Args:
            grad_norm: None where nobody measures it; then the loss decides alone.
        """
        reason = self._fault(loss, grad_norm)
        if reason is not None:
            self._num_skipped += 1
            self._num_in_a_row += 1
            return reason
        self._num_in_a_row = 0
        if grad_norm is not None:
            self._norms.append(grad_norm)
        return None

    def _fault(self, loss: float, grad_norm: float | None) -> str | None:
        if not math.isfinite(loss):
            return "the loss is not finite"
        if grad_norm is None:
            return None
        if not math.isfinite(grad_norm):
            return "the gradient is not finite"
        if grad_norm > self._limit():
            return f"gradient norm {grad_norm:.3g}, limit {self._limit():.3g}"
        return None

    def _limit(self) -> float:
        sigma, count = self._config.spike_sigma, len(self._norms)
        if sigma is None or count < LEAST_NORMS:
            return math.inf
        # from the whole window each time: running sums would depend on where a resumed run began to sum
        mean = math.fsum(self._norms) / count
        variance = math.fsum((norm - mean) ** 2 for norm in self._norms) / count
        return mean + sigma * math.sqrt(variance)
