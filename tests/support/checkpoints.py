"""Runs with checkpoints that nobody has trained: any weights, saved as any number of ranks save them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jobs import begun_job
from tiny_run import write_text
from torch import Tensor

from modules.config import DataConfig, TrainingConfig
from modules.model import GPT
from modules.model_config import ModelConfig
from orchestrator.artifacts.base_model import open_base_model
from orchestrator.artifacts.prepared_data import DataRequirements, prepared_data
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.names import name_of
from orchestrator.checkpoints.parts import Part, commit_parts, store_part
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.snapshot import Snapshot
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.configuration.groups import RunConfig, StorageConfig
from orchestrator.distributed.training_state import MASTER, MOMENTS, Fragment
from orchestrator.runs import run as runs
from orchestrator.storage.store import Storage

NUM_TOKENS = 263
"""Of the tokenizer of these runs: bytes, and the special tokens."""


def begin_run(root: Path, model: Mapping[str, Any], num_steps: int = 20, **training: Any) -> Storage:
    """Prepare text and begin the run `tiny` with a model of this shape, without training it."""
    root.mkdir(exist_ok=True)
    text = write_text(root / "text.txt", 500)
    sizes = {"num_steps": num_steps, "sequence_length": 32, "global_batch_size": 8, **training}
    config = {
        "run": {"name": "tiny"},
        "storage": {"root": str(root / "outputs")},
        "data": {"source": "files", "path": str(text), "split": "position", "val_fraction": 0.1},
        "tokenizer": {"kind": "byte"},
        "model": {"max_positions": 64, **model},
        "optimizer": {"warmup_steps": 4},
        "strategy": {"name": "zero1" if training else "single"},
        "training": sizes,
        "tracking": {"mode": "disabled"},
    }
    begun_job(PretrainConfig.model_validate(config))
    return Storage(str(root / "outputs"))


def continue_model(root: Path, base: Path, model: GPT, lora: Mapping[str, Any] | None = None) -> Storage:
    """Begin the run `tiny` that continues a model folder, and commit a checkpoint of it, without training it.

    Args:
        lora: The adapters in `model`, if it has any.
    """
    storage = Storage(str(root / "outputs"))
    settings = {"path": str(base), "lora": lora, "classifier": model.config.classifier}
    found = open_base_model(
        ModelConfig.model_validate(settings), needs_mask=False, to_classify=model.config.classifier is not None
    )
    text = write_text(root / "text.txt", 500)
    config = PretrainConfig(
        run=RunConfig(name="tiny"),
        storage=StorageConfig(root=storage.url()),
        data=DataConfig(source="files", path=(str(text),), val_fraction=0),
        tokenizer=found.tokenizer_config,
        model=found.config,
        training=TrainingConfig(sequence_length=32),
    )
    requirements = DataRequirements()
    name = prepared_data(storage, config.data, config.tokenizer, requirements, lambda total: lambda *done: None)
    begun = runs.open_run(storage, config, runs.training_recipe(config, name, found.identity))
    runs.begin(storage, begun, config, found.files)
    write_checkpoint(storage, 10, model)
    return storage


def random_model(shape: Mapping[str, Any]) -> GPT:
    """Return a model of this shape with weights so large that every part of it matters."""
    model = GPT(ModelConfig.model_validate({"max_positions": 64, **shape}), NUM_TOKENS).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def write_checkpoint(
    storage: Storage, step: int, model: GPT, num_ranks: int = 1, metrics: Mapping[str, float] | None = None
) -> None:
    """Commit a checkpoint of the run `tiny`: each rank has saved a range of each trained parameter, and moments."""
    parameters = {name: values.detach() for name, values in model.named_parameters() if values.requires_grad}
    for rank in range(num_ranks):
        snapshot = Snapshot.of(
            fragment for name, values in parameters.items() for fragment in _owned(name, values, rank, num_ranks)
        )
        part = Part(name_of("tiny", step), "a1-1", rank, num_ranks, snapshot.index)
        store_part(storage, part, snapshot.pieces())
    progress = Progress(step, tokens=step * 8 * 32, metrics=dict(metrics or {}), precision="32")
    shapes = {name: list(values.shape) for name, values in parameters.items()}
    commit_parts(storage, part, progress.to_json(), shapes, (), Attempt("tiny", 0, ""))


def _owned(name: str, values: Tensor, rank: int, num_ranks: int) -> list[Fragment]:
    start, stop = (values.numel() * (rank + i) // num_ranks for i in (0, 1))
    moment = torch.full((stop - start,), 9.0)
    views = {MASTER: values.view(-1)[start:stop], **dict.fromkeys(MOMENTS, moment)}
    return [Fragment(name, kind, start, stop, view) for kind, view in views.items()]
