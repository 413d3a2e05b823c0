"""Restore the newest complete checkpoint when a fit starts, and save during the fit."""

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pytorch_lightning import Callback, Trainer

from modules.gpt_module import GPTModule
from orchestrator.checkpoints import checkpoint
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.first_weights import first_weights
from orchestrator.checkpoints.parts import Shapes
from orchestrator.checkpoints.pinning import Pinning, pinning_of
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.retention import Retention
from orchestrator.checkpoints.saves import Saves
from orchestrator.configuration.groups import CheckpointConfig
from orchestrator.distributed.collectives import from_rank_0
from orchestrator.distributed.loss_scale import read_loss_scale, restore_loss_scale
from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.distributed.training_state import TrainingState, has_frozen, training_state
from orchestrator.errors import BadStepsError, StorageError
from orchestrator.planning.choice import Choice, score_of
from orchestrator.storage.store import Storage
from orchestrator.training.callbacks.metrics import step_metrics
from orchestrator.training.callbacks.throughput import Throughput
from orchestrator.training.guard import Rollback, RollbackError, StepGuard
from orchestrator.training.save_schedule import SaveSchedule


@dataclass
class _Save:
    """A save in progress."""

    step: int
    loss: float
    training_seconds: float
    began: float
    stall_seconds: float = 0.0
    is_reported: bool = False


class Checkpoints(Callback):
    """Moves the training state to and from checkpoints.

    Args:
        throughput: Is paused during saves; provides the time spent in steps.
        guard: Its state is saved, too.
        schedule: Decides after which steps to save.
        choice: Which figure scores a checkpoint.
        rollback: Why and from where the run rolls back; None continues from the newest checkpoint.
    """

    def __init__(
        self,
        storage: Storage,
        attempt: Attempt,
        config: CheckpointConfig,
        runtime: Runtime,
        throughput: Throughput,
        guard: StepGuard,
        schedule: SaveSchedule,
        choice: Choice,
        rollback: Rollback | None = None,
    ) -> None:
        self._storage, self._attempt, self._config, self._runtime = storage, attempt, config, runtime
        self._throughput, self.guard, self._schedule, self._rollback = throughput, guard, schedule, rollback
        self._choice = choice
        self.scores: dict[int, float] = {}
        """Score of each validated checkpoint by step; lower is better."""
        self.saved_metrics: dict[str, float] = {}
        """Metrics of the last step before the checkpoint from which this fit continues."""
        self.stall_seconds = 0.0
        """Time that training has waited for saves in this fit."""
        self._saves: Saves | None = None
        self._pinning: Pinning | None = None
        self._save: _Save | None = None
        self._saved_step, self._num_failed, self._begun_step = -1, 0, 0

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Fill weights and moments from the newest checkpoint or from the seed, and set the step everywhere."""
        state, shapes = training_state(trainer, pl_module.model), _shapes(pl_module)
        progress = self._restored(state, shapes)
        if progress is None or has_frozen(pl_module.model):
            first = first_weights(shapes, pl_module.model_config, pl_module.vocab_size, pl_module.seed)
            state.fill_frozen(first)
            if progress is None:
                state.load(first, 0)
                state.complete()
        if progress is None:
            progress = Progress(step=0, tokens=0)
        else:
            self._saved_step = progress.step
            if changed := progress.changed_meaning(pl_module.training_config.precision):
                self._note(changed)
        if self._rollback is not None:
            progress = self._rolled_back(progress, self._rollback)
        self.guard.restore(progress.guard)
        self.scores, self.saved_metrics = dict(progress.scores), progress.metrics
        if progress.loss_scale:
            restore_loss_scale(trainer, progress.loss_scale)
        pl_module.data_offset = progress.data_offset
        pl_module.num_tokens = progress.tokens
        pl_module.source_tokens = Counter(progress.source_tokens)
        _set_step(trainer, pl_module, progress.step)
        self._pinning = pinning_of(state)
        self._saves = Saves(self._storage, self._attempt, self._config.mode, self._pinning)
        self._saves.prepare(state)

    def _restored(self, state: TrainingState, shapes: Shapes) -> Progress | None:
        storage, run_name, rollback = self._storage, self._attempt.run_name, self._rollback
        good_step = rollback.good_step if rollback else None
        progress = checkpoint.restore(storage, run_name, state, shapes, notify=self._note, at_most=good_step)
        if progress or rollback:
            step = progress.step if progress else 0
            from_rank_0(lambda: checkpoint.discard_after(storage, run_name, step))
        return progress

    def _rolled_back(self, progress: Progress, rollback: Rollback) -> Progress:
        """Return `progress` with the data offset and guard after the rollback, and report it."""
        step = progress.step
        self._emit(rollback.event(step, step + progress.data_offset, self.guard.max_rollbacks))
        guard = replace(progress.guard, num_rollbacks=rollback.number)
        return replace(progress, data_offset=rollback.offset_from(step), guard=guard)

    def on_train_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Report the step from which the training continues."""
        self._begun_step = pl_module.step
        shared_out = {"world_size": self._runtime.world_size, "micro_batch_size": pl_module.share.micro_batch_size}
        self._emit({"kind": "begin", "step": pl_module.step, **shared_out})
        if self.saved_metrics:
            self._emit({"kind": "restored", "step": pl_module.step, "metrics": self.saved_metrics})

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Save at the interval and at the end."""
        if not pl_module.ends_step(index):
            return
        self._report_when_committed()
        is_last = pl_module.step == trainer.max_steps
        if is_last or self.is_due(pl_module.step):
            self.save_now(trainer, pl_module, must_last=is_last)

    def is_due(self, step: int) -> bool:
        """Return whether `step` is saved for another reason than being the last one."""
        return self._schedule.is_due(step)

    def save_now(self, trainer: Trainer, module: GPTModule, must_last: bool) -> None:
        """Save after the step that has just finished, unless it is saved already; all ranks call this together.

        Args:
            must_last: Wait for the commit; the run cannot end without it.

        Raises:
            StorageError: a required save failed, or too many saves in a row; raised on all ranks. Of its kind
                `RefusedError` if a new attempt would fail in the same way.
        """
        if module.step != self._saved_step:
            metrics = {**step_metrics(trainer, module), **self._throughput.metrics_so_far()}
            began = time.perf_counter()
            with self._throughput.pause():
                self._finish()
                self._emit({"kind": "save", "step": module.step})
                save = self._begin(trainer, module, metrics)
                if self._config.mode == "sync":
                    self._finish(must_last)
            step_seconds = save.training_seconds / max(1, module.step - self._begun_step)
            self._schedule.saved(module.step, time.perf_counter() - began, step_seconds)
        if must_last:
            with self._throughput.pause():
                self._finish(must_last)

    def _begin(self, trainer: Trainer, module: GPTModule, metrics: dict[str, float]) -> _Save:
        assert self._saves is not None
        training_seconds = self._throughput.meter.training_seconds()
        save = _Save(module.step, metrics["train/loss"], training_seconds, time.perf_counter())
        progress = Progress(
            step=module.step,
            tokens=module.num_tokens,
            loss_scale=read_loss_scale(trainer),
            data_offset=module.data_offset,
            guard=self.guard.state,
            scores=self.scores,
            metrics=metrics,
            precision=module.training_config.precision,
            source_tokens=dict(module.source_tokens),
        )
        state = training_state(trainer, module.model)
        self._saves.begin(state, _shapes(module), progress, self._retention(progress))
        self._save = save
        self._saved_step = module.step
        save.stall_seconds = time.perf_counter() - save.began
        if self._pinning is not None and self._pinning.failure:
            self._note(
                f"the copy of a save is not page-locked, so training waits longer for it: {self._pinning.failure}"
            )
            self._pinning = None
        return save

    def _finish(self, must_last: bool = False) -> None:
        if self._save is None or self._saves is None:
            return
        save, self._save = self._save, None
        began = time.perf_counter()
        error = self._saves.finish()
        save.stall_seconds += time.perf_counter() - began
        self.stall_seconds += save.stall_seconds
        self._report(save, error)
        if error:
            self._saved_step = -1
        self._num_failed = self._num_failed + 1 if error else 0
        if error and (must_last or self._num_failed > self._config.max_failed_saves):
            raise type(error)(f"checkpoint not saved: {error}")

    def _report_when_committed(self) -> None:
        if self._save and self._runtime.rank == 0 and self._saves and self._saves.is_committed:
            self._report(self._save, None)

    def _report(self, save: _Save, error: StorageError | None) -> None:
        if save.is_reported:
            return
        save.is_reported = True
        what = {"step": save.step, "seconds": save.stall_seconds}
        if error:
            self._emit({"kind": "save_failed", "text": f"checkpoint not saved: {error}", **what})
        else:
            figures = {"loss": save.loss, "training_seconds": save.training_seconds}
            flush_seconds = time.perf_counter() - save.began
            self._emit({"kind": "checkpoint", **what, **figures, "flush_seconds": flush_seconds})

    def on_train_end(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Wait for the last save, which ends a run that has stopped before its last step, too."""
        with self._throughput.pause():
            self._finish(must_last=True)

    def validated(self, step: int, metrics: dict[str, float]) -> None:
        """Record the score of the checkpoint after `step`, if there is one."""
        name = self._choice.metric
        if step == self._saved_step and name in metrics:
            self.scores[step] = score_of(name, metrics[name])

    def _retention(self, progress: Progress) -> Retention:
        config = self._config
        good_step = progress.step - progress.guard.num_in_a_row
        return Retention(config.keep_last, config.keep_every_steps, config.keep_best, progress.scores, good_step)

    def teardown(self, trainer: Trainer, pl_module: GPTModule, stage: str) -> None:
        """End the writer process, without waiting for a save in progress."""
        if self._saves is not None:
            self._saves.close()
            self._saves = None

    def on_exception(self, trainer: Trainer, pl_module: GPTModule, exception: BaseException) -> None:
        """End the writer process when the fit ends with an error."""
        if isinstance(exception, BadStepsError | RollbackError):  # raised on all ranks, so they finish together
            with suppress(StorageError):
                self._finish()
        self.teardown(trainer, pl_module, "fit")

    def _note(self, text: str) -> None:
        self._emit({"kind": "note", "text": text})

    def _emit(self, event: Event) -> None:
        if self._runtime.rank == 0:
            self._runtime.emit(event)


def _shapes(module: GPTModule) -> Shapes:
    """Return the shapes of the trained parameters: a checkpoint holds no others."""
    named = module.model.named_parameters()
    # under ZeRO-3 `p.shape` is that of an empty shard
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in named if p.requires_grad}


def _set_step(trainer: Trainer, module: GPTModule, step: int) -> None:
    """Set the module's step, and set Lightning's own counters to the same value."""
    module.step = step
    loop = trainer.fit_loop.epoch_loop
    progress = loop.automatic_optimization.optim_progress.optimizer.step.total
    progress.ready = progress.completed = step
    batches: Any = loop.batch_progress.total
    batches.ready = batches.started = batches.processed = batches.completed = step * module.accumulation_steps
