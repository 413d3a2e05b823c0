"""Skip a bad step on all ranks: weights and moments stay, the step counter and the data advance."""

import math
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from modules.gpt_module import GPTModule
from orchestrator.distributed.runtime import Runtime
from orchestrator.distributed.strategy import gradient_norm, guard_steps
from orchestrator.errors import BadStepsError
from orchestrator.runs.data_steps import batch_command
from orchestrator.training.guard import Rollback, RollbackError, StepGuard


class SkipBadSteps(Callback):
    """Lets `guard` judge each step once, before the optimizer changes the weights.

    Args:
        global_batch_size: Sequences in a step, over all workers.
        run_name: Of the run, for the command that shows what was skipped.
    """

    def __init__(self, guard: StepGuard, runtime: Runtime, global_batch_size: int, run_name: str) -> None:
        self._run_name = run_name
        self._guard, self._runtime, self._global_batch_size = guard, runtime, global_batch_size
        self._is_judged, self._reason, self._grad_norm = False, None, None

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Let the guard decide before each optimizer step."""
        guard_steps(trainer, lambda: self._admits(trainer, pl_module))

    def _admits(self, trainer: Trainer, module: GPTModule) -> bool:
        # ZeRO calls this for every group of parameters
        if not self._is_judged:
            loss, self._grad_norm = self._agreed(trainer, module)
            self._reason = self._guard.judge(loss, self._grad_norm)
            self._is_judged = True
        return self._reason is None

    def _agreed(self, trainer: Trainer, module: GPTModule) -> tuple[float, float | None]:
        """Return the highest loss and gradient norm of all ranks, infinite where any is not finite."""
        norm = gradient_norm(trainer)
        if norm is None:
            norm = module.last_metrics.get("optimizer/grad_norm")
        device = trainer.strategy.root_device
        figures = [module.last_metrics["train/loss"], *([] if norm is None else [norm])]
        worst = torch.stack([torch.as_tensor(figure, dtype=torch.float32, device=device) for figure in figures])
        # a maximum over ranks can drop a NaN
        worst = torch.nan_to_num(worst, nan=math.inf, posinf=math.inf, neginf=math.inf)
        if self._runtime.world_size > 1:
            torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        # the only wait for the GPU in a step: the decision is needed before the weights change
        loss, *norms = worst.tolist()
        # DeepSpeed reports -1 for a norm that is not finite
        return loss, (norms[0] if norms[0] >= 0 else math.inf) if norms else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Report a skipped step, and end the fit after too many.

        Raises:
            RollbackError: the run has to roll back.
            BadStepsError: it has no rollback left.
        """
        if not pl_module.ends_step(index):
            return
        # not judged yet if the gradient overflowed: DeepSpeed has skipped the step itself on all ranks
        if not self._admits(trainer, pl_module):
            self._report(pl_module)
        self._is_judged = False
        if self._guard.is_exhausted:
            raise self._error_after_bad_steps(pl_module)

    def _report(self, module: GPTModule) -> None:
        norm, samples = self._grad_norm, self._newest_samples(module, num_steps=1)
        event = {
            "kind": "skip",
            "step": module.step - 1,
            "reason": self._reason,
            "grad_norm": norm if norm is not None and math.isfinite(norm) else None,  # JSON has no infinity
            "samples": list(samples),
            "command": batch_command(self._run_name, *samples),
        }
        if self._runtime.rank == 0:
            self._runtime.emit(event)

    def _newest_samples(self, module: GPTModule, num_steps: int) -> tuple[int, int]:
        """Return the first and the last sample of the newest steps."""
        data_step = module.step + module.data_offset
        return (data_step - num_steps) * self._global_batch_size, data_step * self._global_batch_size - 1

    def _error_after_bad_steps(self, module: GPTModule) -> RollbackError | BadStepsError:
        step, state, guard = module.step, self._guard.state, self._guard
        if not guard.may_roll_back:
            return BadStepsError(
                f"{self._describe_bad_steps(module)}: guard.max_consecutive allows no more in a row, and "
                f"guard.max_rollbacks no more than {guard.max_rollbacks} rollbacks; begin another run with a lower "
                "optimizer.learning_rate or other data, or raise guard.max_consecutive or guard.max_rollbacks and "
                "continue this one"
            )
        return RollbackError(
            Rollback(
                step=step,
                good_step=step - state.num_in_a_row,
                data_offset=module.data_offset,
                global_batch_size=self._global_batch_size,
                number=state.num_rollbacks + 1,
                reason=self._describe_bad_steps(module),
            )
        )

    def _describe_bad_steps(self, module: GPTModule) -> str:
        last, count = module.step, self._guard.state.num_in_a_row
        steps = f"steps {last - count + 1} to {last} were" if count > 1 else f"step {last} was"
        first_sample, last_sample = self._newest_samples(module, count)
        return f"{steps} skipped (samples {first_sample} to {last_sample}; at the end {self._reason})"
