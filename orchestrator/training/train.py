"""What one worker does in a training, the same under each launcher: open the inputs, fit, write the results."""

import gc
import logging
import socket
import warnings
from dataclasses import replace

import torch

from modules.objective import Objective
from orchestrator.artifacts.base_model import kept_model
from orchestrator.artifacts.data_facts import DataFacts
from orchestrator.checkpoints import checkpoint
from orchestrator.checkpoints.export import Exportable, export_adapter, export_model
from orchestrator.checkpoints.first_weights import BaseWeights
from orchestrator.checkpoints.names import name_of
from orchestrator.distributed.precision import emulation_note
from orchestrator.distributed.runtime import Runtime
from orchestrator.errors import MovedError, StoppedError
from orchestrator.runs.event_files import EventFiles
from orchestrator.runs.event_writer import EventWriter
from orchestrator.runs.events import events_folder
from orchestrator.runs.history import History
from orchestrator.runs.lease import ended_with_lease
from orchestrator.runs.results import Results
from orchestrator.runs.run import Job
from orchestrator.runs.tracking import NullTracker, Tracker, lacks_key, make_tracker
from orchestrator.storage.local import cache_folder, use_cache_folder
from orchestrator.storage.store import Storage
from orchestrator.training.callbacks.preemption import StopNotices
from orchestrator.training.fit import Fitted, Parts, fit
from orchestrator.training.freed_memory import keep_freed_memory
from orchestrator.training.guard import Rollback, RollbackError


def train(job: Job, runtime: Runtime) -> None:
    """Train `job` on this worker, from its newest checkpoint to its last step; rank 0 exports the model.

    Raises:
        OrchestratorError: a checkpoint or the data is damaged, or a store cannot be written.
        BadStepsError: too many steps in a row were bad and no rollback is left; raised on all workers.
        StoppedError: a worker received a notice of termination; raised on all workers, after a last checkpoint.
        MovedError: the run continues with other workers; raised in the same way.
        LeaseLostError: another driver has taken over the run; raised on rank 0.
    """
    _quiet_libraries()
    keep_freed_memory()
    use_cache_folder(job.config.storage.cache_dir)
    storage = Storage(job.config.storage.root)
    events = EventWriter(EventFiles(storage, events_folder(job.run.folder)))
    if runtime.rank:
        _train_and_export(job, storage, runtime, events)
        return
    history = History(storage, job.run.folder, job.attempt.number)
    with ended_with_lease(storage, job.attempt), history, events:
        emit = history.and_then(events.and_then(runtime.emit))
        _train_and_export(job, storage, replace(runtime, emit=emit), events)


def _train_and_export(job: Job, storage: Storage, runtime: Runtime, events: EventWriter) -> None:
    config, objective = job.config, job.objective.open(storage)
    results = Results(job.run, storage, objective.tokenizer, _tracker(job, storage, runtime), runtime, events)
    results.start(config.training.num_steps)
    if note := emulation_note(config.training.precision, torch.device(runtime.device)):
        runtime.emit({"kind": "note", "text": note})
    try:
        with StopNotices(runtime) as notices:
            parts = Parts(config, job.run, job.attempt, storage, objective, runtime, results, notices)
            fitted = _train(parts)
    except StoppedError as stop:
        results.stop(stop)
        raise
    except MovedError:
        results.pause()
        raise
    if runtime.rank == 0:
        job.attempt.check(storage)
        source = _exportable(job, storage, objective, fitted, results)
        export_model(storage, job.run.model_name, source, config.export)
        if source.base:
            export_adapter(storage, job.run.adapter_name, source)
        results.finish(job.objective.data_name, fitted.step, fitted.exported_step, fitted.training_seconds)


def _exportable(job: Job, storage: Storage, objective: Objective, fitted: Fitted, results: Results) -> Exportable:
    kept, model = kept_model(storage, job.run.base_name), job.config.model
    vocab_size = model.vocab_size or objective.tokenizer.vocab_size
    is_last = fitted.exported_step == fitted.step
    return Exportable(
        run_name=job.run.name,
        checkpoint=checkpoint.open_checkpoint(storage, name_of(job.run.name, fitted.exported_step)),
        model=model,
        tokenizer=kept.tokenizer if kept else objective.tokenizer,
        special_ids=kept.special_ids if kept else {},
        recipe=job.run.recipe,
        data=DataFacts.read(storage, job.objective.data_name),
        validation=results.metrics if is_last else results.validation_after(fitted.exported_step),
        base=BaseWeights(model, vocab_size) if model.lora else None,
        base_dtype=kept.dtype if kept and model.lora else None,
    )


def _train(parts: Parts) -> Fitted:
    """Fit to the last step, again after each rollback."""
    rollback: Rollback | None = None
    while True:
        try:
            return fit(parts, rollback)
        except RollbackError as error:
            rollback = error.rollback
        # Lightning holds a model in reference cycles, and two models may not fit into memory. After a single pass the
        # old model was left in half of the runs.
        for _ in range(2):
            gc.collect()


def _tracker(job: Job, storage: Storage, runtime: Runtime) -> Tracker:
    if runtime.rank:
        return NullTracker()
    if job.driver_has_wandb_key and lacks_key(job.config.tracking):
        place = f"the driver has a W&B key, and {socket.gethostname()}, which tracks the run, has none"
        remedy = "give the nodes WANDB_API_KEY, from a Kubernetes secret or in the environment of `ray start`"
        runtime.emit({"kind": "note", "text": f"{place}: it is tracked offline; {remedy}"})
    return make_tracker(
        job.config.tracking,
        job.run.name,
        job.run.wandb_run_id,
        storage.local_path(job.run.folder) or cache_folder() / job.run.folder,
        job.config.model_dump(mode="json"),
        notify=lambda text: runtime.emit({"kind": "note", "text": text}),
    )


def _quiet_libraries() -> None:
    """Keep the libraries' messages off the terminal; the program itself prints what a user should know."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|deepspeed|torch)\b")
