"""The model directory of a finished run: whole tensors in Hugging Face form, read from its last checkpoint."""

import json
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from modules.data.tokenizer import Tokenizer
from modules.huggingface.export import save_huggingface
from modules.model_config import ModelConfig
from orchestrator.artifacts import artifact
from orchestrator.artifacts.staging import staging_folder
from orchestrator.checkpoints.checkpoint import Checkpoint
from orchestrator.distributed.training_state import MASTER
from orchestrator.storage.store import Storage


def export_model(
    storage: Storage,
    name: str,
    checkpoint: Checkpoint,
    model: ModelConfig,
    tokenizer: Tokenizer,
    recipe: dict[str, Any],
) -> None:
    """Publish the model directory `name`: one tensor at a time, so the whole model is never in memory."""
    vocab_size = model.vocab_size or tokenizer.vocab_size
    with staging_folder(storage, name) as folder:
        save_huggingface(
            folder, model, vocab_size, _tensors(checkpoint), end_ids=tokenizer.end_ids, begin_id=tokenizer.begin_id
        )
        tokenizer.save_for_transformers(folder, model.max_positions)
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        put = artifact.replace if _is_of_another_step(storage, name, checkpoint.progress.step) else artifact.publish
        put(storage, folder, name, {"kind": "model", "step": checkpoint.progress.step})


def _is_of_another_step(storage: Storage, name: str, step: int) -> bool:
    """Return whether there is the model that the run left when it was to have fewer steps."""
    return artifact.is_committed(storage, name) and artifact.read_manifest(storage, name)["step"] != step


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    for name, shape in checkpoint.shapes.items():
        yield name, checkpoint.reader.read(name, MASTER, 0, math.prod(shape)).view(shape)
