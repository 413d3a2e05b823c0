"""One fit with a new module, callbacks and trainer: a model that DeepSpeed has prepared cannot be filled again."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from pytorch_lightning import Callback, Trainer

from modules.data.ahead import MadeAhead, Packed
from modules.data.batches import Batch, Share
from modules.generation.sampling import Sampling
from modules.generation.window import DocumentEnd
from modules.gpt_module import GPTModule
from modules.objective import Objective
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.rules import micro_batch_size
from orchestrator.distributed.precision import float32_products, lightning_precision
from orchestrator.distributed.runtime import Runtime
from orchestrator.distributed.strategy import build_strategy
from orchestrator.planning.choice import Choice, choice_of, kept_checkpoints
from orchestrator.runs.results import Results
from orchestrator.runs.run import Run
from orchestrator.storage.store import Storage
from orchestrator.training.callbacks.bad_steps import SkipBadSteps
from orchestrator.training.callbacks.checkpoints import Checkpoints
from orchestrator.training.callbacks.garbage import GarbageCollection
from orchestrator.training.callbacks.gradients import ClipGradients, DeepSpeedGradientNorm
from orchestrator.training.callbacks.metrics import Metrics, is_reported
from orchestrator.training.callbacks.order import in_order
from orchestrator.training.callbacks.preemption import Preemption, StopNotices
from orchestrator.training.callbacks.throughput import Throughput
from orchestrator.training.callbacks.validation import Validation
from orchestrator.training.callbacks.watchdog import Watchdog
from orchestrator.training.guard import Rollback, StepGuard
from orchestrator.training.samples import Samples
from orchestrator.training.save_schedule import SaveSchedule, seen_mtbf_seconds
from orchestrator.training.verdicts import Verdicts

_LONGEST_SAMPLE_TOKENS = 64
_LONGEST_COMPILE_SECONDS = 1800.0


@dataclass(frozen=True)
class Parts:
    """The objects that a worker keeps for the whole training, through all rollbacks."""

    config: TrainingRunConfig
    run: Run
    attempt: Attempt
    storage: Storage
    objective: Objective
    runtime: Runtime
    results: Results
    notices: StopNotices

    @property
    def choice(self) -> Choice:
        """How the step is chosen whose model is exported."""
        return choice_of(self.config)

    @property
    def share(self) -> Share:
        """Which part of each global batch this worker computes."""
        micro_size = micro_batch_size(self.config, self.runtime.world_size)
        return Share(self.objective.global_batch_size, micro_size, self.runtime.rank, self.runtime.world_size)


@dataclass(frozen=True)
class Fitted:
    """What a fit has come to."""

    step: int
    """The last step."""
    exported_step: int
    """The step whose model is exported."""
    training_seconds: float
    """Time spent in steps."""


def fit(parts: Parts, rollback: Rollback | None) -> Fitted:
    """Train to the last step, or until the run no longer gets better.

    Args:
        rollback: Why and from where the run rolls back; None continues from the newest checkpoint.
    """
    module = _build_module(parts)
    throughput = Throughput(parts.objective.sequence_length)
    checkpoints = _checkpoints(parts, throughput, rollback)
    trainer = _build_trainer(parts, in_order(_callbacks(parts, throughput, checkpoints)))
    batches = MadeAhead(_BatchesFromStep(module), _for_device(parts.runtime))
    with float32_products(torch.device(parts.runtime.device), parts.config.training.tf32):
        trainer.fit(module, throughput.watch(batches))
    exported = parts.choice.exported_step(checkpoints.scores, module.step)
    return Fitted(module.step, exported, throughput.meter.training_seconds())


def _for_device(runtime: Runtime) -> Callable[[Batch], Batch | Packed]:
    """Return what is done to each batch in memory, so that its way to the device costs this process no wait."""
    return partial(Packed.of, pinned=True) if runtime.device.startswith("cuda") else lambda batch: batch


class _BatchesFromStep(Iterable[Batch]):
    """The batches from the module's step on, which a checkpoint has set before Lightning requests the first batch."""

    def __init__(self, module: GPTModule) -> None:
        self._module = module

    def __iter__(self) -> Iterator[Batch]:
        module = self._module
        return module.objective.batches(module.share, module.step + module.data_offset)


def _build_module(parts: Parts) -> GPTModule:
    config = parts.config
    return GPTModule(
        model=config.model,
        vocab_size=config.model.vocab_size or parts.objective.tokenizer.vocab_size,
        objective=parts.objective,
        optimizer=config.optimizer,
        training=config.training,
        share=parts.share,
        seed=config.run.seed,
    )


def _build_trainer(parts: Parts, callbacks: Callback) -> Trainer:
    config, runtime, precision = parts.config, parts.runtime, parts.config.training.precision
    trainer = Trainer(
        accelerator="gpu" if runtime.device.startswith("cuda") else "cpu",
        devices=1,
        strategy=build_strategy(config.strategy, runtime, config.optimizer, precision),
        precision=lightning_precision(precision, config.strategy.zero_stage),  # type: ignore[arg-type]
        max_steps=config.training.num_steps,
        max_epochs=-1,
        accumulate_grad_batches=parts.share.accumulation_steps,
        callbacks=callbacks,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning's SIGTERM handler broadcasts inside the signal handler, which aborts during another collective
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    # and its loop broadcasts before each micro-batch, and waits for it, whether there was one
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _validates_after(parts: Parts, step: int) -> bool:
    return step % parts.config.training.val_interval_steps == 0 or parts.objective.is_milestone(step)


def _checkpoints(parts: Parts, throughput: Throughput, rollback: Rollback | None) -> Checkpoints:
    config, choice = parts.config, parts.choice
    return Checkpoints(
        _storage_of_saves(parts),
        parts.attempt,
        kept_checkpoints(config),
        parts.runtime,
        throughput,
        StepGuard(config.guard),
        SaveSchedule(
            config.checkpoint,
            lambda: seen_mtbf_seconds(parts.results.events_so_far()),
            also_due=lambda step: choice.needs_every_validation and _validates_after(parts, step),
        ),
        choice,
        rollback,
    )


def _callbacks(parts: Parts, throughput: Throughput, checkpoints: Checkpoints) -> list[Callback]:
    config, run, runtime, guard = parts.config, parts.run, parts.runtime, checkpoints.guard

    def own_figures() -> dict[str, float]:
        return {
            **throughput.metrics(),
            "checkpoint/stall_seconds": checkpoints.stall_seconds,
            "faults/skipped_steps": guard.state.num_skipped,
            "faults/rollbacks": guard.state.num_rollbacks,
        }

    def is_looked_at(step: int) -> bool:
        reports = is_reported(step, config.training.log_interval_steps, config.training.num_steps)
        return reports or checkpoints.is_due(step) or _validates_after(parts, step)

    verdicts = Verdicts(guard, parts.notices.asked, runtime.world_size)
    deepspeed_clips = config.strategy.zero_stage > 0
    interval = config.training.gc_interval_steps
    collection = None if interval is None else GarbageCollection(interval)
    by_python = collection.by_python if collection else nullcontext
    return [
        DeepSpeedGradientNorm() if deepspeed_clips else ClipGradients(config.optimizer.gradient_clip_norm),
        SkipBadSteps(verdicts, runtime, parts.objective.global_batch_size, run.name, is_looked_at),
        throughput,
        checkpoints,
        Metrics(config.training.log_interval_steps, own_figures, lambda: checkpoints.saved_metrics, parts.results.step),
        *_validation(parts, throughput, checkpoints, by_python),
        Preemption(checkpoints, verdicts),
        *([collection] if collection else []),
        Watchdog(
            parts.storage,
            run.folder,
            runtime,
            config.cluster.hang_timeout_seconds,
            _LONGEST_COMPILE_SECONDS if config.training.compiled else 0.0,
        ),
        *_ordered_fault(parts),
    ]


def _validation(
    parts: Parts,
    throughput: Throughput,
    checkpoints: Checkpoints,
    by_python: Callable[[], AbstractContextManager[None]],
) -> list[Callback]:
    training, objective, choice = parts.config.training, parts.objective, parts.choice
    batches = objective.validation_batches(parts.share, training.val_batches)
    if batches is None:
        return []

    def report(step: int, metrics: dict[str, float], samples: Samples | None) -> bool:
        checkpoints.validated(step, metrics)
        parts.results.validation(step, metrics, samples.rows if samples else [], samples.note if samples else None)
        return choice.is_over(checkpoints.scores)

    def is_owed(step: int) -> bool:
        is_unknown = choice.needs_every_validation and _validates_after(parts, step) and step not in checkpoints.scores
        return step >= training.num_steps or (step > 0 and is_unknown)

    @contextmanager
    def outside_steps() -> Iterator[None]:
        with throughput.pause(), by_python():
            yield

    return [
        Validation(
            batches,
            due=lambda step: _validates_after(parts, step),
            owed=is_owed,
            sampling=_sampling(parts),
            report=report,
            outside_steps=outside_steps,
        )
    ]


def _sampling(parts: Parts) -> Sampling | None:
    """Return the settings of the samples after each validation; None if there are none."""
    tracking = parts.config.tracking
    if not tracking.num_samples or tracking.mode == "disabled":
        return None
    longest = min(_LONGEST_SAMPLE_TOKENS, parts.objective.sequence_length - 1)
    training = parts.config.training
    restarts = training.position_scope == "document"
    document_end = DocumentEnd(parts.objective.tokenizer.end_of_text_id, restarts)
    return Sampling(
        tracking.num_samples,
        max_new_tokens=longest,
        top_k=50,
        seed=parts.config.run.seed,
        end_ids=parts.objective.sample_end_ids,
        document_end=document_end if training.attention_scope == "document" else None,
    )


def _storage_of_saves(parts: Parts) -> Storage:
    """Return the store of this rank's saves, which refuses them if that fault was requested."""
    faults, storage = parts.config.faults, parts.storage
    if faults is None or not faults.fails_saves or faults.rank != parts.runtime.rank:
        return storage
    from orchestrator.training.faults import FailingStorage, FaultOrder

    return FailingStorage(parts.config.storage.root, FaultOrder(faults, storage, parts.run.folder))


def _ordered_fault(parts: Parts) -> list[Callback]:
    faults = parts.config.faults
    if faults is None:
        return []
    from orchestrator.training.callbacks.faults import OrderedFault
    from orchestrator.training.faults import FaultOrder

    order = FaultOrder(faults, parts.storage, parts.run.folder)
    return [OrderedFault(order, parts.storage, parts.run.name, parts.runtime)]
