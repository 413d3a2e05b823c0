"""Decide whether a step may change the weights, from its loss, its gradient norm and earlier norms."""

import math
from collections import deque
from dataclasses import dataclass

from orchestrator.checkpoints.progress import GuardState
from orchestrator.configuration.groups import LEAST_NORMS, GuardConfig
from orchestrator.distributed.runtime import Event


@dataclass(frozen=True)
class Rollback:
    """The state of a run that rolls back because too many steps in a row were bad."""

    step: int
    """Finished steps, including the bad ones."""
    good_step: int
    """Finished steps before the bad ones; later checkpoints are not used."""
    data_offset: int
    """Data offset of those steps, as in `Progress`."""
    global_batch_size: int
    """Samples in a step."""
    number: int
    """Number of this rollback in the run, counted from 1."""
    reason: str
    """Which steps were bad, and why."""

    def offset_from(self, step: int) -> int:
        """Return the data offset for continuing after `step`, so that no data is seen twice."""
        return self.step + self.data_offset - step

    def event(self, step: int, data_step: int, max_rollbacks: int) -> Event:
        """Return the event of a run that continues after `step`.

        Args:
            data_step: The data step that came next at `step` before the rollback.
        """
        last_data_step = self.step + self.data_offset
        first, last = data_step * self.global_batch_size, last_data_step * self.global_batch_size - 1
        target = f"the checkpoint after step {step}" if step else "the initial weights"
        return {
            "kind": "rollback",
            "step": step,
            "from_step": self.step,
            "data_steps": last_data_step - data_step,
            "samples": [first, last],
            "text": f"{self.reason}: back to {target}, and on without samples {first} to {last} "
            f"(rollback {self.number} of {max_rollbacks})",
        }


class RollbackError(Exception):
    """Ends the fit on all ranks; the training continues with another fit."""

    def __init__(self, rollback: Rollback) -> None:
        super().__init__(rollback.reason)
        self.rollback = rollback


class StepGuard:
    """Judges each step. The same losses and norms after the same state give the same decisions."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self.restore(GuardState())

    def restore(self, state: GuardState) -> None:
        """Continue from `state`."""
        self._norms = deque(state.grad_norms, maxlen=self._config.window_steps)
        self._num_skipped, self._num_in_a_row = state.num_skipped, state.num_in_a_row
        self._num_rollbacks = state.num_rollbacks

    @property
    def state(self) -> GuardState:
        return GuardState(tuple(self._norms), self._num_skipped, self._num_in_a_row, self._num_rollbacks)

    @property
    def max_rollbacks(self) -> int:
        return self._config.max_rollbacks

    @property
    def may_roll_back(self) -> bool:
        """Whether the run has a rollback left."""
        return self._num_rollbacks < self._config.max_rollbacks

    @property
    def is_exhausted(self) -> bool:
        """Whether too many steps in a row were bad."""
        return self._num_in_a_row >= self._config.max_consecutive

    def judge(self, loss: float, grad_norm: float | None) -> str | None:
        """Return why the step must be skipped, or None for a good one; each step is judged once.

        Args:
            grad_norm: None if it is not measured; the decision then depends on the loss alone.
        """
        reason = self._reason_to_skip(loss, grad_norm)
        if reason is not None:
            self._num_skipped += 1
            self._num_in_a_row += 1
            return reason
        self._num_in_a_row = 0
        if grad_norm is not None:
            self._norms.append(grad_norm)
        return None

    def _reason_to_skip(self, loss: float, grad_norm: float | None) -> str | None:
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
        # computed from the whole window each time, since running sums would differ after a resume
        mean = math.fsum(self._norms) / count
        variance = math.fsum((norm - mean) ** 2 for norm in self._norms) / count
        return mean + sigma * math.sqrt(variance)
