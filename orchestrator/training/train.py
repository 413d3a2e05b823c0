"""One worker's way through a training: build the parts, fit, hand over the results. The same under every launcher."""

import gc
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pytorch_lightning import Callback, Trainer
from torch import Tensor

from modules.data.batches import Batches, ValidationBatches
from modules.data.shards import TokenData
from modules.gpt_module import GPTModule
from modules.objectives import Batch, phase_ends
from orchestrator.artifacts import artifact
from orchestrator.checkpoints import checkpoint
from orchestrator.checkpoints.export import export_model
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.configuration.rules import accumulation_steps, micro_batch_size
from orchestrator.distributed.runtime import Runtime
from orchestrator.distributed.strategy import build_strategy
from orchestrator.errors import MovedError, StoppedError
from orchestrator.runs.events import EventLog
from orchestrator.runs.results import Results
from orchestrator.runs.run import Job
from orchestrator.runs.tracking import NullTracker, Tracker, make_tracker
from orchestrator.storage.local import cache_folder
from orchestrator.storage.store import Storage
from orchestrator.training.callbacks.bad_steps import SkipBadSteps
from orchestrator.training.callbacks.checkpoints import Checkpoints
from orchestrator.training.callbacks.gradients import ClipGradients, DeepSpeedGradientNorm
from orchestrator.training.callbacks.metrics import Metrics
from orchestrator.training.callbacks.preemption import Preemption, StopNotices
from orchestrator.training.callbacks.throughput import Throughput
from orchestrator.training.callbacks.validation import Validation
from orchestrator.training.callbacks.watchdog import Watchdog
from orchestrator.training.guard import Rollback, RollbackError, StepGuard
from orchestrator.training.save_schedule import seen_mtbf_seconds

_LIGHTNING_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def train(job: Job, runtime: Runtime) -> None:
    """Train `job` on this worker, from its newest checkpoint to its last step; rank 0 exports the model.

    Raises:
        OrchestratorError: a checkpoint or the data is damaged, or a store cannot be written.
        BadStepsError: too many steps in a row were bad, once too often; raised on all workers.
        StoppedError: a notice of termination reached some worker; raised on all of them, after a last checkpoint.
        MovedError: the run shall go on with other workers; raised in the same way.
    """
    _quiet_libraries()
    config = PretrainConfig.model_validate(job.config)
    storage = Storage(config.storage.root)
    events = EventLog(storage, job.run.folder)
    if runtime.rank == 0:
        runtime = replace(runtime, emit=events.and_then(runtime.emit))
    data = TokenData.open(artifact.local_copy(storage, job.data_name, cache_folder()))
    results = Results(job.run, storage, data.tokenizer, _tracker(config, job, storage, runtime), runtime, events)
    results.start(config.training.num_steps)
    try:
        with StopNotices(runtime) as notices:
            step, training_seconds = _train(_Parts(config, job, storage, data, runtime, results, notices))
    except StoppedError as stop:
        results.stop(stop)
        raise
    except MovedError:
        results.pause()
        raise
    if runtime.rank == 0:
        last = checkpoint.open_checkpoint(storage, checkpoint.name_of(job.run.name, step))
        export_model(storage, job.run.model_name, last, config.model, data.tokenizer, job.run.recipe)
        results.finish(job.data_name, step, training_seconds)


@dataclass(frozen=True)
class _Parts:
    """What serves a training on this worker from its start to its end, however often it goes back."""

    config: PretrainConfig
    job: Job
    storage: Storage
    data: TokenData
    runtime: Runtime
    results: Results
    notices: StopNotices


def _train(parts: _Parts) -> tuple[int, float]:
    """Fit to the last step, and anew after each rollback; return that step, and the last fit's seconds in steps."""
    rollback: Rollback | None = None
    while True:
        try:
            return _fit(parts, rollback)
        except RollbackError as error:
            rollback = error.rollback
        # Lightning ties a model into cycles, and two may not fit into memory; one pass left it in half of the runs
        for _ in range(2):
            gc.collect()


def _fit(parts: _Parts, rollback: Rollback | None) -> tuple[int, float]:
    """Fit a fresh model: what DeepSpeed has made of one cannot be filled anew."""
    config, data, runtime = parts.config, parts.data, parts.runtime
    module = _build_module(config, data, runtime)
    throughput = Throughput(_tokens_per_step(config), config.training.sequence_length)
    trainer = _build_trainer(config, runtime, _callbacks(parts, throughput, rollback))
    trainer.fit(module, throughput.watch(_StepBatches(module, _batches(config, data, runtime))))
    return module.step, throughput.meter.training_seconds()


def _tracker(config: PretrainConfig, job: Job, storage: Storage, runtime: Runtime) -> Tracker:
    if runtime.rank:
        return NullTracker()
    folder = storage.local_path(job.run.folder) or cache_folder() / job.run.folder
    return make_tracker(
        config.tracking,
        job.run.name,
        job.run.wandb_run_id,
        folder,
        job.config,
        say=lambda text: runtime.emit({"kind": "note", "text": text}),
    )


def _build_module(config: PretrainConfig, data: TokenData, runtime: Runtime) -> GPTModule:
    return GPTModule(
        model=config.model,
        vocab_size=config.model.vocab_size or data.tokenizer.vocab_size,
        token_num_bytes=data.tokenizer.token_num_bytes(),
        objective=config.objective,
        optimizer=config.optimizer,
        training=config.training,
        accumulation_steps=accumulation_steps(config, runtime.world_size),
        dropout_seed=hash((config.run.seed, runtime.rank)),
    )


def _batch_settings(config: PretrainConfig, runtime: Runtime) -> dict[str, Any]:
    training = config.training
    return {
        "sequence_length": training.sequence_length,
        "global_batch_size": training.global_batch_size,
        "micro_batch_size": micro_batch_size(config, runtime.world_size),
        "seed": config.run.seed,
        "rank": runtime.rank,
        "world_size": runtime.world_size,
        "objective": config.objective,
        "with_masked": any(phase.weights.get("mlm") for phase in config.objective.phases),
        "with_documents": training.attention_scope == "document",
    }


def _batches(config: PretrainConfig, data: TokenData, runtime: Runtime) -> Batches:
    return Batches(data.train, data.tokenizer, **_batch_settings(config, runtime))


class _StepBatches:
    """The batches from the module's place in the data on: by the time that Lightning asks, a checkpoint has set it."""

    def __init__(self, module: GPTModule, batches: Batches) -> None:
        self._module, self._batches = module, batches

    def __iter__(self) -> Iterator[Batch]:
        return self._batches.from_step(self._module.step + self._module.data_offset)


def _tokens_per_step(config: PretrainConfig) -> int:
    return config.training.global_batch_size * config.training.sequence_length


def _callbacks(parts: _Parts, throughput: Throughput, rollback: Rollback | None) -> list[Callback]:
    """Return the callbacks in the order in which they act after a step: what fails last has lost least."""
    config, storage, run, runtime = parts.config, parts.storage, parts.job.run, parts.runtime
    training, clip_norm = config.training, config.optimizer.gradient_clip_norm
    tokens_per_step = _tokens_per_step(config)
    guard = StepGuard(config.guard)
    checkpoints = Checkpoints(
        _storage_of_saves(parts),
        run.name,
        config.checkpoint,
        runtime,
        tokens_per_step,
        config.run.seed,
        throughput,
        guard,
        mtbf_seconds=lambda: seen_mtbf_seconds(parts.results.events()),
        rollback=rollback,
    )

    def extra() -> dict[str, float]:
        return {
            **throughput.metrics(),
            "checkpoint/stall_seconds": checkpoints.stall_seconds,
            "faults/skipped_steps": guard.state.num_skipped,
            "faults/rollbacks": guard.state.num_rollbacks,
        }

    return [
        DeepSpeedGradientNorm() if config.strategy.zero_stage else ClipGradients(clip_norm),
        SkipBadSteps(guard, runtime, training.global_batch_size),
        throughput,
        checkpoints,
        Metrics(training.log_interval_steps, tokens_per_step, extra, parts.results.step),
        *_validation(parts, throughput, checkpoints),
        Preemption(checkpoints, parts.notices, runtime),
        Watchdog(storage, run.folder, runtime, config.cluster.hang_timeout_seconds),
        *_ordered_fault(parts),
    ]


def _storage_of_saves(parts: _Parts) -> Storage:
    """Return the store of this rank's saves: one that fails if that was ordered."""
    faults, storage = parts.config.faults, parts.storage
    if faults is None or not faults.fails_saves or faults.rank != parts.runtime.rank:
        return storage
    from orchestrator.training.faults import FailingStorage, FaultOrder

    return FailingStorage(parts.config.storage.root, FaultOrder(faults, storage, parts.job.run.folder))


def _ordered_fault(parts: _Parts) -> list[Callback]:
    faults = parts.config.faults
    if faults is None:
        return []
    storage, run = parts.storage, parts.job.run
    from orchestrator.training.callbacks.faults import OrderedFault
    from orchestrator.training.faults import FaultOrder

    return [OrderedFault(FaultOrder(faults, storage, run.folder), storage, run.name, parts.runtime)]


def _validation(parts: _Parts, throughput: Throughput, checkpoints: Checkpoints) -> list[Validation]:
    config, data = parts.config, parts.data
    training = config.training
    if len(data.val) == 0:  # data.val_fraction=0
        return []
    batches = ValidationBatches(
        data.val, data.tokenizer, num_batches=training.val_batches, **_batch_settings(config, parts.runtime)
    )
    ends = set(phase_ends(config.objective, training.num_steps))
    prompt = {
        "prompt_ids": [data.tokenizer.end_of_text_id],
        "num_sequences": config.tracking.num_samples,
        "max_new_tokens": min(64, training.sequence_length - 1),
        "temperature": 1.0,
        "top_k": 50,
        "top_p": None,
        "seed": config.run.seed,
        "stop_id": None,
    }

    def report(step: int, metrics: dict[str, float], samples: Tensor | None) -> None:
        checkpoints.validated(step, metrics)
        parts.results.validation(step, metrics, samples)

    return [
        Validation(
            batches,
            due=lambda step: step % training.val_interval_steps == 0 or step in ends,
            prompt=prompt if config.tracking.num_samples and config.tracking.mode != "disabled" else None,
            report=report,
            pause=throughput.pause,
        )
    ]


def _build_trainer(config: PretrainConfig, runtime: Runtime, callbacks: list[Callback]) -> Trainer:
    trainer = Trainer(
        accelerator="gpu" if runtime.device.startswith("cuda") else "cpu",
        devices=1,
        strategy=build_strategy(config.strategy, runtime, config.optimizer.gradient_clip_norm),
        precision=_LIGHTNING_PRECISION[config.training.precision],  # type: ignore[arg-type]
        max_steps=config.training.num_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulation_steps(config, runtime.world_size),
        callbacks=callbacks,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning's handler of SIGTERM broadcasts from within the signal: in the middle of another collective that aborts
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _quiet_libraries() -> None:
    """Keep the libraries' notices off the terminal: what a user should know, we say."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|deepspeed|torch)\b")
