"""Trained models by path: our own model directories, Hugging Face folders and hub names."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modules.config import ObjectiveConfig, TokenizerConfig, TrainingConfig
from modules.cores import num_cores
from modules.data.tokenizer import END_OF_TEXT, MASK, Tokenizer, build_tokenizer, can_end_documents, read_vocabulary
from modules.errors import InputError
from modules.huggingface.folder import LocalFolder, read_end_ids
from modules.huggingface.weights import load_huggingface
from modules.model import GPT
from orchestrator.artifacts import artifact
from orchestrator.errors import ArtifactError, UserError
from orchestrator.storage.access import check_root
from orchestrator.storage.local import cache_folder
from orchestrator.storage.store import Storage

_NEEDED = (
    *("config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "recipe.json"),
)


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, on the GPU if there is one, with its tokenizer and what decides how it reads text."""

    model: GPT
    tokenizer: Tokenizer
    tokenizer_file: Path
    end_ids: tuple[int, ...]
    """Tokens at which a text ends; empty if the model has none."""
    knows_mask: bool
    """Whether the model has a row for the mask token; models trained elsewhere mostly have none."""
    recipe: dict[str, Any]
    """Empty for models that were not trained here."""
    training: TrainingConfig | None
    """The settings of its training; None if it was not trained here."""
    objective: ObjectiveConfig
    """What it learned to predict; the defaults if it was not trained here."""

    @property
    def context_length(self) -> int:
        """Tokens up to which it was trained; positions after them may exist, but were never learned."""
        return self.training.sequence_length if self.training else self.model.config.max_positions

    @property
    def reads_documents_apart(self) -> bool:
        """Whether attention stays within each document."""
        return self.training is not None and self.training.attention_scope == "document"

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context in which it computes with the precision of its training."""
        name = self.training.precision if self.training else "32"
        dtype = _half(name, self.device.type)
        return torch.autocast(self.device.type, dtype) if dtype and not name.endswith("-true") else nullcontext()


def load_model(path: str) -> TrainedModel:
    """Load a model directory (any fsspec URL), a Hugging Face folder or a hub name.

    Raises:
        UserError: there is no such model, or it is of a kind that cannot be loaded.
        ArtifactError: the model directory is damaged.
    """
    folder = _local_folder(path)
    torch.set_num_threads(min(torch.get_num_threads(), num_cores()))  # torch does not see what a container is granted
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_huggingface(LocalFolder(folder), device).eval()
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise InputError(f"model.path={path}: no tokenizer.json beside the weights; save the tokenizer there")
    tokenizer, end_ids, knows_mask = _tokenizer(folder, tokenizer_file, model.vocab_size)
    recipe, training, objective = _recipe(folder / "recipe.json")
    if training is not None and training.precision.endswith("-true"):
        model = model.to(_half(training.precision, device) or torch.float32)
    return TrainedModel(model, tokenizer, tokenizer_file, end_ids, knows_mask, recipe, training, objective)


def _half(precision: str, device: str) -> torch.dtype | None:
    """Return the 16-bit type of a training's precision; None if there is none, or for float16 without a GPU."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") and device == "cuda" else None


def _tokenizer(folder: Path, file: Path, num_rows: int) -> tuple[Tokenizer, tuple[int, ...], bool]:
    """Return the tokenizer with the end token of config.json, all end tokens, and whether the mask token has a row."""
    content = file.read_bytes()
    config = TokenizerConfig(kind="file", path=str(file))
    own = read_vocabulary(config, content)
    names = {number: name for name, number in own.items() if number < num_rows}
    usual = [own[END_OF_TEXT]] if own.get(END_OF_TEXT) in names else []
    end_ids = [number for number in read_end_ids(LocalFolder(folder)) if number in names] or usual
    # a model may stop at a line break, which ends no document
    end_token = next((names[n] for n in end_ids if can_end_documents(config, content, names[n])), None)
    config = config.model_copy(update={"end_token": end_token})
    tokenizer = build_tokenizer(config, lambda: iter(()), content)
    return tokenizer, tuple(end_ids), own.get(MASK) in names


def _recipe(file: Path) -> tuple[dict[str, Any], TrainingConfig | None, ObjectiveConfig]:
    """Return the recipe with the settings that decide how the model reads text.

    Raises:
        UserError: it is not one that this program wrote.
    """
    if not file.is_file():
        return {}, None, ObjectiveConfig()
    try:
        recipe = json.loads(file.read_text(encoding="utf-8"))
        training = TrainingConfig.model_validate(recipe["training"]) if "training" in recipe else None
        return recipe, training, ObjectiveConfig.model_validate(recipe.get("objective", {}))
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{file}: no recipe of this program ({reason}); restore it, or remove it to use the model without one"
        ) from error


def _local_folder(path: str) -> Path:
    check_root(path)
    parent, _, name = path.rstrip("/").rpartition("/")
    storage = Storage(parent or ".")
    if storage.exists(f"{name}/{artifact.COMMITTED}"):  # one with a damaged manifest is ours, too, and is not read
        return _own_copy(storage, name)
    if storage.exists(f"{name}/config.json"):
        return _plain_copy(storage, name)
    if path.count("/") <= 1 and not path.startswith((".", "/", "~")):
        return _from_hub(path)
    raise UserError(f"model.path={path}: no model there; name a folder with config.json and model.safetensors")


def _own_copy(storage: Storage, name: str) -> Path:
    try:
        return artifact.local_copy(storage, name, cache_folder() / "models")
    except ArtifactError as error:
        raise ArtifactError(
            f"model.path={error}; restore it from a copy, or remove {storage.url(name)} and its run's metrics.json: "
            "the command that trained it then writes both anew from the last checkpoint"
        ) from None


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
        return Path(snapshot_download(name, allow_patterns=list(_NEEDED)))
    except Exception as error:  # the hub client and the HTTP stack below it raise many unrelated types
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"model.path={name}: no such folder, and the hub does not provide it: {reason[0]}") from None
