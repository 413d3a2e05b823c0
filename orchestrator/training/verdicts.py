"""What all ranks agree on in each step, in one collective: whether it is bad, and whether one was asked to stop."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.distributed.host_copy import HostCopy
from orchestrator.distributed.runtime import request_of_strength, strength
from orchestrator.training.guard import StepGuard


class Settled(NamedTuple):
    """A step whose verdict is known in this process."""

    step: int
    """Finished steps, this one included."""
    reason: str | None
    """Why it was skipped; None for a good one."""
    grad_norm: float | None


class _Judged(NamedTuple):
    """The verdict on a step, where it is computed."""

    is_bad: Tensor | bool
    figures: Tensor | list[float]
    """The highest loss, norm and request of all ranks, and the norm's limit if there is one."""
    has_norm: bool


class Verdicts:
    """Verdicts on steps, which the device finds and uses without this process waiting for them.

    Args:
        asked: Returns what this process was asked to do, as `StopNotices.asked`.
        world_size: Workers.
    """

    def __init__(self, guard: StepGuard, asked: Callable[[], int], world_size: int) -> None:
        self.guard = guard
        self.asked = 0
        """What one of the workers was asked to do before a step that is settled: a signal's number, `MOVE` or 0."""
        self._own_asked, self._world_size = asked, world_size
        self._judged: _Judged | None = None
        self._pending: deque[tuple[int, bool, Callable[[], list[float]]]] = deque()
        """Finished steps; of each whether it has a norm, and what returns its figures."""

    @property
    def is_bad(self) -> Tensor | bool | None:
        """Whether the step that is being computed must be skipped, bool [] on its device; None before it is judged."""
        return None if self._judged is None else self._judged.is_bad

    def judge(self, loss: Tensor, grad_norm: Tensor | float | None) -> Tensor:
        """Judge a step, each once, and return `is_bad`; all ranks call this together.

        Args:
            loss: float32 [], of this worker.
            grad_norm: Of the whole gradient; None if unknown.
        """
        norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm, dtype=loss.dtype, device=loss.device)
        worst = torch.stack([loss, norm, torch.full_like(loss, strength(self._own_asked()))])
        # a maximum over ranks can drop a NaN
        worst.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf)
        if self._world_size > 1:
            torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        is_bad, limit = self.guard.judge(worst[:1] if grad_norm is None else worst[:2])
        figures = worst if limit is None else torch.cat([worst, limit[None]])
        self._judged = _Judged(is_bad, figures, grad_norm is not None)
        return is_bad

    def judge_here(self, loss: Tensor, grad_norm: Tensor | float | None) -> Tensor | bool:
        """Judge a step as `judge` does, by this process where that takes no other: two numbers are read faster."""
        if self._world_size > 1 or self.guard.has_limit:
            return self.judge(loss, grad_norm)
        norm = grad_norm if isinstance(grad_norm, Tensor) else torch.tensor(grad_norm or 0.0, dtype=loss.dtype)
        figures = [loss.item(), norm.item()]
        figures = [figure if math.isfinite(figure) else math.inf for figure in figures]
        self._judged = _Judged(math.inf in figures, [*figures, strength(self._own_asked())], grad_norm is not None)
        return self._judged.is_bad

    def end_step(self, step: int) -> None:
        """Begin to copy the figures of the step that has just finished into this process's memory."""
        assert self._judged is not None, "judged"
        _, figures, has_norm = self._judged
        values = HostCopy(figures).values if isinstance(figures, Tensor) else figures.copy
        self._pending.append((step, has_norm, values))
        self._judged = None

    def settled(self, up_to: int) -> Iterator[Settled]:
        """Count the steps up to `up_to` that are not counted yet, and yield each; waits for them."""
        while self._pending and self._pending[0][0] <= up_to:
            step, has_norm, values = self._pending.popleft()
            loss, norm, asked, *limit = values()
            grad_norm = norm if has_norm else None
            self.asked = self.asked or request_of_strength(int(asked))
            yield Settled(step, self.guard.count(loss, grad_norm, *limit), grad_norm)
