"""Decide whether a step may change the weights, from its loss, its gradient norm and earlier norms."""

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Judges each step. The same losses and norms after the same state give the same decisions.

    The decision is made where the loss is, by `judge`, and counted here by `count`, perhaps some steps later.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self.restore(GuardState())

    def restore(self, state: GuardState) -> None:
        """Continue from `state`."""
        self._norms = deque(state.grad_norms, maxlen=self._config.window_steps)
        self._num_skipped, self._num_in_a_row = state.num_skipped, state.num_in_a_row
        self._num_rollbacks = state.num_rollbacks
        self._window: _NormWindow | None = None

    @property
    def state(self) -> GuardState:
        """The state after the steps that are counted."""
        return GuardState(tuple(self._norms), self._num_skipped, self._num_in_a_row, self._num_rollbacks)

    @property
    def max_rollbacks(self) -> int:
        return self._config.max_rollbacks

    @property
    def has_limit(self) -> bool:
        """Whether a norm can be too high."""
        return self._config.spike_sigma is not None

    @property
    def may_roll_back(self) -> bool:
        """Whether the run has a rollback left."""
        return self._num_rollbacks < self._config.max_rollbacks

    @property
    def is_exhausted(self) -> bool:
        """Whether too many steps in a row were bad."""
        return self._num_in_a_row >= self._config.max_consecutive

    def judge(self, figures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Judge a step where it is computed; waits for nothing.

        Args:
            figures: float32 [2], loss and norm of the gradient, infinite where they are not finite; [1] without norm.

        Returns:
            Whether the step is bad, bool [], and the highest norm of a good one, float64 []; None if there is no limit.
        """
        is_bad = figures.amax().isinf()
        if self._config.spike_sigma is None or len(figures) == 1:
            return is_bad, None
        self._window = self._window or _NormWindow(self._norms, self._config.window_steps, figures.device)
        limit = self._window.limit(self._config.spike_sigma)
        is_bad |= figures[1] > limit
        self._window.add(figures[1], ~is_bad)
        return is_bad, limit

    def count(self, loss: float, grad_norm: float | None, limit: float = math.inf) -> str | None:
        """Count a step that was judged, each once and in order; return why it was skipped, or None for a good one."""
        reason = _reason_to_skip(loss, grad_norm, limit)
        if reason is not None:
            self._num_skipped += 1
            self._num_in_a_row += 1
            return reason
        self._num_in_a_row = 0
        if grad_norm is not None:
            self._norms.append(grad_norm)
        return None


def _reason_to_skip(loss: float, grad_norm: float | None, limit: float) -> str | None:
    if not math.isfinite(loss):
        return "the loss is not finite"
    if grad_norm is None:
        return None
    if not math.isfinite(grad_norm):
        return "the gradient is not finite"
    return f"gradient norm {grad_norm:.3g}, limit {limit:.3g}" if grad_norm > limit else None


class _NormWindow:
    """The norms of the newest good steps, where the steps are computed."""

    def __init__(self, norms: Collection[float], num_steps: int, device: torch.device) -> None:
        missing = [math.nan] * (num_steps - len(norms))
        self._norms = torch.tensor([*missing, *norms], dtype=torch.float64, device=device)

    def limit(self, sigma: float) -> Tensor:
        """Return the highest norm that is no spike, float64 []."""
        # computed from the whole window each time, since running sums would differ after a resume
        mean = self._norms.nanmean()
        deviation = (self._norms - mean).square().nanmean().sqrt()
        has_enough = (~self._norms.isnan()).sum() >= LEAST_NORMS
        return torch.where(has_enough, mean + sigma * deviation, math.inf)

    def add(self, grad_norm: Tensor, is_good: Tensor) -> None:
        """Add the norm of a good step."""
        self._norms = torch.where(is_good, torch.cat([self._norms[1:], grad_norm[None]]), self._norms)
