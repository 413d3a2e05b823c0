"""Skip a bad step on all ranks: weights and moments stay, the step counter and the data advance."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from modules.gpt_module import GPTModule
from orchestrator.distributed.runtime import Runtime
from orchestrator.distributed.strategy import gradient_norm, guard_steps
from orchestrator.errors import BadStepsError
from orchestrator.runs.data_steps import batch_command
from orchestrator.training.guard import Rollback, RollbackError
from orchestrator.training.verdicts import Settled, Verdicts


class SkipBadSteps(Callback):
    """Lets each step be judged once, before the optimizer changes the weights.

    On a GPU the verdict is used there and read when the next step is done, or at once after a step that anybody looks
    at; what follows from it is the same.

    Args:
        global_batch_size: Sequences in a step, over all workers.
        run_name: Of the run, for the command that shows what was skipped.
        is_looked_at: Returns whether a step is saved, reported or validated.
        reads_late: Whether verdicts are read a step later; None does so where reading them takes a wait.
    """

    def __init__(
        self,
        verdicts: Verdicts,
        runtime: Runtime,
        global_batch_size: int,
        run_name: str,
        is_looked_at: Callable[[int], bool],
        reads_late: bool | None = None,
    ) -> None:
        self._verdicts, self._runtime, self._is_looked_at = verdicts, runtime, is_looked_at
        self._run_name, self._global_batch_size = run_name, global_batch_size
        self._reads_late = reads_late

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Let each optimizer step depend on the verdict."""
        if self._reads_late is None:
            self._reads_late = trainer.strategy.root_device.type == "cuda"
        waiting = guard_steps(trainer, lambda: self._is_bad(trainer, pl_module), on_device=self._reads_late)
        if waiting and self._runtime.rank == 0:
            text = f"{', '.join(waiting)} cannot skip a step on the GPU, so each step waits for the verdict on it"
            self._runtime.emit({"kind": "note", "text": text})

    def _is_bad(self, trainer: Trainer, module: GPTModule) -> Tensor | bool:
        if (known := self._verdicts.is_bad) is not None:  # ZeRO asks for every group of parameters
            return known
        norm = gradient_norm(trainer)
        if norm is None:
            norm = module.last_metrics.get("optimizer/grad_norm")
        loss = torch.as_tensor(module.last_metrics["train/loss"], dtype=torch.float32)
        judge = self._verdicts.judge if self._reads_late else self._verdicts.judge_here
        return judge(loss, norm)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Report skipped steps, and end the fit after too many.

        Raises:
            RollbackError: the run has to roll back.
            BadStepsError: it has no rollback left.
        """
        if not pl_module.ends_step(index):
            return
        # not judged yet if the gradient overflowed: DeepSpeed has skipped the step itself on all ranks
        self._is_bad(trainer, pl_module)
        step = pl_module.step
        self._verdicts.end_step(step)
        is_late = self._reads_late and not self._is_looked_at(step)
        self._settle(pl_module, step - 1 if is_late else step)
        if self._verdicts.asked:  # the run is saved and ends after this step
            self._settle(pl_module, step)

    def _settle(self, module: GPTModule, up_to: int) -> None:
        for settled in self._verdicts.settled(up_to):
            if settled.reason is not None:
                self._report(module, settled)
            if self._verdicts.guard.is_exhausted:
                raise self._error_after_bad_steps(module, settled)

    def _report(self, module: GPTModule, settled: Settled) -> None:
        norm, samples = settled.grad_norm, self._newest_samples(module, settled.step, num_steps=1)
        event = {
            "kind": "skip",
            "step": settled.step - 1,
            "reason": settled.reason,
            "grad_norm": norm if norm is not None and math.isfinite(norm) else None,  # JSON has no infinity
            "samples": list(samples),
            "command": batch_command(self._run_name, *samples),
        }
        if self._runtime.rank == 0:
            self._runtime.emit(event)

    def _newest_samples(self, module: GPTModule, step: int, num_steps: int) -> tuple[int, int]:
        """Return the first and the last sample of `num_steps` steps that end with `step`."""
        data_step = step + module.data_offset
        return (data_step - num_steps) * self._global_batch_size, data_step * self._global_batch_size - 1

    def _error_after_bad_steps(self, module: GPTModule, last: Settled) -> RollbackError | BadStepsError:
        guard = self._verdicts.guard
        state, described = guard.state, self._describe_bad_steps(module, last)
        if not guard.may_roll_back:
            return BadStepsError(
                f"{described}: guard.max_consecutive allows no more in a row, and "
                f"guard.max_rollbacks no more than {guard.max_rollbacks} rollbacks; begin another run with a lower "
                "optimizer.learning_rate or other data, or raise guard.max_consecutive or guard.max_rollbacks and "
                "continue this one"
            )
        return RollbackError(
            Rollback(
                step=last.step,
                good_step=last.step - state.num_in_a_row,
                data_offset=module.data_offset,
                global_batch_size=self._global_batch_size,
                number=state.num_rollbacks + 1,
                reason=described,
            )
        )

    def _describe_bad_steps(self, module: GPTModule, last: Settled) -> str:
        step, count = last.step, self._verdicts.guard.state.num_in_a_row
        steps = f"steps {step - count + 1} to {step} were" if count > 1 else f"step {step} was"
        first_sample, last_sample = self._newest_samples(module, step, count)
        return f"{steps} skipped (samples {first_sample} to {last_sample}; at the end {last.reason})"
