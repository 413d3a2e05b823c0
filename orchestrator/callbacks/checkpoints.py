"""Continues from the newest whole checkpoint when a fit starts, and saves as it goes on."""

import time
from dataclasses import replace
from typing import Any

from pytorch_lightning import Callback, Trainer

from modules.gpt_module import GPTModule
from orchestrator import checkpoint
from orchestrator.callbacks.throughput import Throughput
from orchestrator.checkpoint import InitialWeights, Progress
from orchestrator.config import CheckpointConfig
from orchestrator.guard import Rollback, StepGuard
from orchestrator.runtime import Event, Runtime
from orchestrator.storage import Storage
from orchestrator.training_state import training_state


class Checkpoints(Callback):
    """Owns the way between the training state and its checkpoints.

    Args:
        tokens_per_step: Over all workers.
        seed: Decides the initial weights of a run without checkpoints.
        throughput: Leaves the time of a save out, and tells the time in steps.
        guard: Is a part of what is saved.
        rollback: Where the run has to go back from; None goes on from the newest checkpoint.
    """

    def __init__(
        self,
        storage: Storage,
        run_name: str,
        config: CheckpointConfig,
        runtime: Runtime,
        tokens_per_step: int,
        seed: int,
        throughput: Throughput,
        guard: StepGuard,
        rollback: Rollback | None = None,
    ) -> None:
        self._storage, self._run_name, self._config, self._runtime = storage, run_name, config, runtime
        self._tokens_per_step, self._seed, self._throughput = tokens_per_step, seed, throughput
        self._guard, self._rollback = guard, rollback
        self.stall_seconds = 0.0
        """Time that training has waited for saves, since it began here or went back."""
        self._saved_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Fill weights and moments, from the newest checkpoint or from the seed; set the step everywhere."""
        name = trainer.strategy.broadcast(self._newest() if self._runtime.rank == 0 else None)
        state = training_state(trainer, pl_module.model)
        if name is None:
            shapes = self._shapes(pl_module)
            state.load(InitialWeights(shapes, pl_module.model_config, pl_module.vocab_size, self._seed), 0)
            progress = Progress(step=0, tokens=0)
        else:
            opened = checkpoint.open_checkpoint(self._storage, name)
            state.load(opened.reader, opened.progress.optimizer_steps)
            progress = opened.progress
        if self._rollback is not None:
            progress = self._gone_back(progress, self._rollback)
        self._guard.restore(progress.guard)
        pl_module.data_offset = progress.data_offset
        _set_step(trainer, pl_module, progress.step)

    def _gone_back(self, progress: Progress, rollback: Rollback) -> Progress:
        """Return with which data and guard the run goes on from `progress`, and tell it."""
        step = progress.step
        self._emit(rollback.event(step, step + progress.data_offset, self._guard.max_rollbacks))
        guard = replace(progress.guard, num_rollbacks=rollback.number)
        return replace(progress, data_offset=rollback.offset_from(step), guard=guard)

    def on_train_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Tell from where the training goes on."""
        self._emit({"kind": "begin", "step": pl_module.step, "world_size": self._runtime.world_size})

    def _newest(self) -> str | None:
        name = checkpoint.newest_valid(
            self._storage,
            self._run_name,
            say=lambda text: self._emit({"kind": "note", "text": text}),
            at_most=self._rollback.good_step if self._rollback else None,
        )
        if name is not None:
            step = checkpoint.open_checkpoint(self._storage, name).progress.step
            checkpoint.discard_after(self._storage, self._run_name, step)
        elif self._rollback is not None:
            checkpoint.discard_after(self._storage, self._run_name, 0)
        return name

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Save at the interval and at the end."""
        if (index + 1) % pl_module.accumulation_steps:
            return
        if pl_module.step % self._config.interval_steps == 0 or pl_module.step == trainer.max_steps:
            self.save_now(trainer, pl_module)

    def save_now(self, trainer: Trainer, module: GPTModule) -> None:
        """Save after the step that has just finished, unless that is done; all ranks call it together."""
        if module.step != self._saved_step:
            loss = trainer.strategy.reduce(module.last_metrics["train/loss"], reduce_op="mean")
            training_seconds = self._throughput.meter.training_seconds()
            with self._throughput.pause():
                seconds = self._save(trainer, module)
            self._saved_step = module.step
            self._emit(
                {
                    "kind": "checkpoint",
                    "step": module.step,
                    "loss": float(loss),
                    "seconds": seconds,
                    "training_seconds": training_seconds,
                }
            )

    def _save(self, trainer: Trainer, module: GPTModule) -> float:
        started = time.perf_counter()
        name = checkpoint.name_of(self._run_name, module.step)
        shapes = {parameter: list(shape) for parameter, shape in self._shapes(module).items()}
        guard, tokens = self._guard.state, module.step * self._tokens_per_step
        progress = Progress(module.step, tokens, data_offset=module.data_offset, guard=guard)
        checkpoint.save(self._storage, name, training_state(trainer, module.model), shapes, progress)
        if self._runtime.rank == 0:
            config = self._config
            good_step = module.step - guard.num_in_a_row
            checkpoint.prune(self._storage, self._run_name, config.keep_last, config.keep_every_steps, good_step)
        seconds = time.perf_counter() - started
        self.stall_seconds += seconds
        return seconds

    @staticmethod
    def _shapes(module: GPTModule) -> dict[str, tuple[int, ...]]:
        # under ZeRO-3 a parameter's own shape is that of an empty shard
        return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in module.model.named_parameters()}

    def _emit(self, event: Event) -> None:
        if self._runtime.rank == 0:
            self._runtime.emit(event)


def _set_step(trainer: Trainer, module: GPTModule, step: int) -> None:
    """Set our step, which decides everything, and make Lightning's own counters equal to it."""
    module.step = step
    loop = trainer.fit_loop.epoch_loop
    progress = loop.automatic_optimization.optim_progress.optimizer.step.total
    progress.ready = progress.completed = step
    batches: Any = loop.batch_progress.total
    batches.ready = batches.started = batches.processed = batches.completed = step * module.accumulation_steps
