"""Trained models by path, with what decides how they read text."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from modules.config import ObjectiveConfig, TrainingConfig
from modules.cores import num_cores
from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.tokenizer import Tokenizer
from modules.data.tokenizer_names import TOKENIZER_FILE
from modules.generation.sampling import Sampling
from modules.generation.window import DocumentEnd
from modules.huggingface.adapter import read_adapter
from modules.huggingface.folder import ModelFolder, read_bytes, read_config
from modules.huggingface.weights import load_huggingface
from modules.inference import prepare_for_inference
from modules.lora import merge
from modules.model import GPT
from orchestrator.artifacts.model_folders import (
    RECIPE,
    FoundModel,
    find_adapter,
    find_model,
    no_output_head,
    read_files,
)
from orchestrator.errors import UserError
from orchestrator.storage.redaction import redact


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, on the GPU if there is one, with its tokenizer and what decides how it reads text."""

    model: GPT
    tokenizer: Tokenizer
    tokenizer_path: str
    """Its tokenizer.json: a local path or a URL."""
    files: Mapping[str, bytes]
    """The small files of its folder, by name: settings, tokenizer and chat template."""
    recipe: dict[str, Any]
    """Empty for models that were not trained here."""
    training: TrainingConfig | None
    """The settings of its training; None if it was not trained here."""
    objective: ObjectiveConfig
    """What it learned to predict; the defaults if it was not trained here."""
    is_prepared: bool = False
    """Whether its weights were converted and laid out for generation."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens at which a text ends; empty if the model has none."""
        return self.tokenizer.end_ids

    def ends_at(self, stop: Sequence[str]) -> tuple[int, ...]:
        """Return the tokens at which a text ends, with those that stop strings name.

        A token such as `<|im_end|>` has a name and no text, so no text would ever hold it.
        """
        numbers = [number for name in stop if (number := self.tokenizer.id_of(name)) is not None]
        return (*self.end_ids, *(number for number in numbers if not self.tokenizer.decode([number])))

    def sampling(self, stop: Sequence[str], **settings: Any) -> Sampling:
        """Return the settings of a continuation, with those that follow from the model and from the stop strings."""
        return Sampling(
            end_ids=self.ends_at(stop),
            context_length=self.context_length,
            document_end=self.document_end,
            **settings,
        )

    @property
    def knows_mask(self) -> bool:
        """Whether the model has a row for the mask token; models trained elsewhere mostly have none."""
        return self.tokenizer.mask_id is not None and self.tokenizer.mask_id < self.model.vocab_size

    @property
    def context_length(self) -> int:
        """Tokens up to which it was trained; positions after them may exist, but were never learned."""
        longest = self.model.config.max_positions
        # one that was continued had learned all of its positions before
        return longest if self.training is None or "base_model" in self.recipe else self.training.sequence_length

    @property
    def validation_length(self) -> int:
        """Tokens of a sequence in its training's validation; as many as it was trained for if that was elsewhere."""
        return self.training.sequence_length if self.training else self.context_length

    @property
    def reads_documents_apart(self) -> bool:
        """Whether attention stays within each document."""
        return self.training is not None and self.training.attention_scope == "document"

    @property
    def restarts_positions(self) -> bool:
        """Whether positions are counted from 0 in each of them."""
        return self.training is not None and self.training.position_scope == "document"

    @property
    def document_end(self) -> DocumentEnd | None:
        """Where a text goes on as another document; None if attention crosses documents."""
        if not self.reads_documents_apart:
            return None
        return DocumentEnd(self.tokenizer.end_of_text_id, self.restarts_positions)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def prepared(self, precision: str | None, prepack: bool) -> "TrainedModel":
        """Return it prepared to generate, and for nothing else; this one is not usable any more.

        Args:
            precision: `32` or `bf16`; None takes that of its training.
            prepack: Whether its weights are laid out for the fastest kernels; see `prepare_for_inference`.
        """
        model = self.model.float() if precision == "32" else self.model
        dtype = _half(precision or (self.training.precision if self.training else "32"), self.device.type)
        prepare_for_inference(model, dtype, prepack=prepack)
        return replace(self, model=model, is_prepared=True)

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context in which it computes with the precision of its training, or that it was prepared for."""
        if self.is_prepared:
            return nullcontext()
        name = self.training.precision if self.training else "32"
        dtype = _half(name, self.device.type)
        return torch.autocast(self.device.type, dtype) if dtype and not name.endswith("-true") else nullcontext()


def load_model(
    path: str, revision: str | None = None, adapter: str | None = None, *, needs_head: bool = False
) -> TrainedModel:
    """Load a model directory of ours or a Hugging Face folder (any fsspec URL), or a hub name at a revision.

    Args:
        path: Where it is.
        revision: Of a hub name; None takes the newest.
        adapter: A folder of ours or of PEFT's (any fsspec URL), which is merged into the model in float32. What decides
            how the model reads text comes from there where it is there, since an adapter may have brought new tokens.
        needs_head: Whether a classifier, which has no output head, is refused.

    Raises:
        UserError, InputError: there is no such model or adapter, it is of a kind that cannot be loaded, or one does not
            belong to the other.
        ArtifactError: a directory of ours is damaged.
    """
    found = find_model(path, revision).checked()
    if needs_head and read_config(found.folder).classifier is not None:
        raise no_output_head(path)
    beside = find_adapter(adapter).checked() if adapter is not None else None
    torch.set_num_threads(min(torch.get_num_threads(), num_cores()))  # torch does not see what a container is granted
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _loaded(found, beside, device).eval()
    folders = [found.folder, *([beside.folder] if beside else [])]
    files = {name: content for folder in folders for name, content in read_files(folder).items()}
    tokenizer = load_pretrained(files, f"model.path={redact(path)}")
    recipe, training, objective = _recipe(_last_with(folders, RECIPE))
    if training is not None and training.precision.endswith("-true"):
        model = model.to(_half(training.precision, device) or torch.float32)
    where = f"{_last_with(folders, TOKENIZER_FILE).url}/{TOKENIZER_FILE}"
    return TrainedModel(model, tokenizer, where, files, recipe, training, objective)


def _loaded(found: FoundModel, beside: FoundModel | None, device: str) -> GPT:
    if beside is None:
        return load_huggingface(found.folder, device, found.num_readers)
    config = read_config(found.folder)
    adapter = read_adapter(beside.folder, config)
    tensors = {name: values.to(device) for name, values in adapter.tensors.items()}
    model = load_huggingface(found.folder, device, found.num_readers, adapter.vocab_size)
    for name, parameter in model.named_parameters():
        merge(config, name, parameter.detach(), tensors, adapter.scale, adapter.tokens)
    return model


def _last_with(folders: Sequence[ModelFolder], name: str) -> ModelFolder:
    return next((folder for folder in reversed(folders) if folder.has(name)), folders[0])


def _half(precision: str, device: str) -> torch.dtype | None:
    """Return the 16-bit type of a training's precision; None if there is none, or for float16 without a GPU."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") and device == "cuda" else None


def _recipe(folder: ModelFolder) -> tuple[dict[str, Any], TrainingConfig | None, ObjectiveConfig]:
    """Return the recipe with the settings that decide how the model reads text.

    Raises:
        UserError: it is not one that this program wrote.
    """
    if not folder.has(RECIPE):
        return {}, None, ObjectiveConfig()
    try:
        recipe = json.loads(read_bytes(folder, RECIPE))
        training = TrainingConfig.model_validate(recipe["training"]) if "training" in recipe else None
        return recipe, training, ObjectiveConfig.model_validate(recipe.get("objective", {}))
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{folder.url}/{RECIPE}: no recipe of this program ({reason}); restore it, or remove it to use the model "
            "without one"
        ) from error
