"""Trained models by path: our own model directories, Hugging Face folders and hub names."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modules.config import TokenizerConfig
from modules.data.tokenizer import Tokenizer, build_tokenizer
from modules.errors import InputError
from modules.huggingface import load_huggingface
from modules.model import GPT
from orchestrator.artifacts import artifact
from orchestrator.errors import UserError
from orchestrator.storage.local import cache_folder
from orchestrator.storage.store import Storage

_NEEDED = ["config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer.json", "recipe.json"]


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, on the GPU if there is one, with its tokenizer and its recipe."""

    model: GPT
    tokenizer: Tokenizer
    tokenizer_file: Path
    recipe: dict[str, Any]
    """Empty for models that were not trained here."""

    @property
    def knows_mask(self) -> bool:
        """Whether the model has a row for the mask token; models trained elsewhere mostly have none."""
        return self.tokenizer.mask_id < self.model.vocab_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_model(path: str) -> TrainedModel:
    """Load a model directory (any fsspec URL), a Hugging Face folder or a hub name.

    Raises:
        UserError: there is no such model, or it is of a kind that cannot be loaded.
        ArtifactError: the model directory is damaged.
    """
    folder = _local_folder(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_huggingface(folder, device).eval()
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise InputError(f"model.path={path}: no tokenizer.json beside the weights; save the tokenizer there")
    recipe_file = folder / "recipe.json"
    recipe = json.loads(recipe_file.read_text(encoding="utf-8")) if recipe_file.is_file() else {}
    config = TokenizerConfig(kind="file", path=str(tokenizer_file))
    tokenizer = build_tokenizer(config, lambda: iter(()), tokenizer_file.read_bytes())
    return TrainedModel(model, tokenizer, tokenizer_file, recipe)


def _local_folder(path: str) -> Path:
    parent, _, name = path.rstrip("/").rpartition("/")
    storage = Storage(parent or ".")
    if artifact.is_committed(storage, name):
        return artifact.local_copy(storage, name, cache_folder() / "models")
    if storage.exists(f"{name}/config.json"):
        return _plain_copy(storage, name)
    if path.count("/") <= 1 and not path.startswith((".", "/", "~")):
        return _from_hub(path)
    raise UserError(f"model.path={path}: no model there; name a folder with config.json and model.safetensors")


def _plain_copy(storage: Storage, name: str) -> Path:
    """Return the path of a local folder without a manifest, which this project did not make and cannot check."""
    path = storage.local_path(name)
    if path is not None:
        return path
    raise UserError(
        f"model.path={storage.url(name)}: not committed by orchestrator; download it and name the local folder"
    )


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"model.path={name}: no such folder; for hub names: pip install huggingface_hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=_NEEDED))
    except Exception as error:  # the hub client and the HTTP stack below it raise many unrelated types
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"model.path={name}: no such folder, and the hub does not provide it: {reason[0]}") from None
