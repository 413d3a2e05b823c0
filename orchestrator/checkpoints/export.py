"""The model directory of a checkpoint: whole tensors in Hugging Face form, with all that other tools need."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.data.pretrained_tokenizer import named_tokens
from modules.data.tokenizer import Tokenizer
from modules.data.tokenizer_names import SETTINGS_FILE
from modules.huggingface.adapter import save_adapter
from modules.huggingface.export import save_generation_config, save_huggingface, shards_of
from modules.huggingface.weights import num_parameters, parameter_shapes, trained_shapes
from modules.model_config import ModelConfig
from orchestrator.artifacts import artifact
from orchestrator.artifacts.data_facts import DataFacts
from orchestrator.artifacts.staging import staging_folder
from orchestrator.checkpoints.checkpoint import Checkpoint
from orchestrator.checkpoints.merged_weights import MergedWeights
from orchestrator.checkpoints.model_card import Card
from orchestrator.checkpoints.parts import check_shapes
from orchestrator.configuration.groups import ModelFilesConfig
from orchestrator.distributed.training_state import MASTER, Fragment, StateReader
from orchestrator.storage.access import is_local
from orchestrator.storage.redaction import redact, without_secrets
from orchestrator.storage.store import Storage

RECIPE = "recipe.json"
_SPECIAL = ("bos_token", "pad_token")
_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Exportable:
    """A checkpoint, and everything else that a model directory is made of."""

    run_name: str
    checkpoint: Checkpoint
    model: ModelConfig
    tokenizer: Tokenizer
    special_ids: Mapping[str, int]
    """Tokens that the settings of a model which the run continues name, by setting; empty without one."""
    recipe: Mapping[str, Any]
    data: DataFacts | None
    validation: Mapping[str, float]
    """Figures of this checkpoint on held-out text, by metric name; empty if none were measured."""
    base: StateReader | None = None
    """The frozen weights, if adapters were trained."""
    base_dtype: str | None = None
    """Their type."""

    @property
    def step(self) -> int:
        return self.checkpoint.progress.step

    @property
    def weights(self) -> StateReader:
        """The weights of the model that is exported, as whole tensors; adapters are merged into them."""
        held = self.checkpoint
        if self.base is None:
            return held.reader
        return MergedWeights(self.base, held.reader, held.shapes, self.model, self.vocab_size)

    @property
    def exported(self) -> ModelConfig:
        """The model that is exported."""
        return self.model.without_adapters

    @property
    def vocab_size(self) -> int:
        """Number of tokens for which the model has rows, without padding."""
        return self.model.vocab_size or self.tokenizer.vocab_size


def export_model(storage: Storage, name: str, source: Exportable, files: ModelFilesConfig) -> None:
    """Publish the model directory `name`; one file of weights at a time is in memory, and no moment is read.

    A model of the same step that is there stays as it is; another is what the run left when it was to have fewer steps,
    and is replaced.

    Raises:
        ArtifactError: a file of the checkpoint is missing or damaged.
        InputError: a weight is beyond the range of `export.dtype`.
        StorageError: a store cannot be read or written.
    """
    _check(source)
    dtype = dtype_of(files, source.recipe, source.base_dtype)
    facts = {"kind": "model", "dtype": dtype, "license": files.license}
    _publish(storage, name, source, facts, lambda folder: _write(folder, source, files, dtype))


def export_adapter(storage: Storage, name: str, source: Exportable) -> None:
    """Publish the adapter directory `name` in the form of PEFT, with the tokenizer; as `export_model`."""
    _check(source)
    _publish(storage, name, source, {"kind": "adapter"}, lambda folder: _write_adapter(folder, source))


def _check(source: Exportable) -> None:
    expected = {name: list(shape) for name, shape in trained_shapes(source.model, source.vocab_size).items()}
    check_shapes(source.checkpoint.shapes, expected, source.checkpoint.name)


def _publish(
    storage: Storage, name: str, source: Exportable, facts: Mapping[str, Any], write: Callable[[Path], None]
) -> None:
    is_there = artifact.is_committed(storage, name)
    if is_there and artifact.read_manifest(storage, name)["step"] == source.step:
        return
    facts = {**facts, "step": source.step}
    with staging_folder(storage, name) as folder:
        write(folder)
        manifest = (artifact.replace if is_there else artifact.publish)(storage, folder, name, facts)
    if not storage.is_local:  # in a local store the folder itself takes the place of the old one
        _remove_strays(storage, name, manifest)


def dtype_of(files: ModelFilesConfig, recipe: Mapping[str, Any], base_dtype: str | None = None) -> str:
    """Return the name of the weights' type: the one that is set, else the base model's, else that of the training.

    Args:
        base_dtype: That of the weights beside which adapters were trained; None without adapters.
    """
    is_half = recipe.get("training", {}).get("precision") == "bf16-true"
    return files.dtype or base_dtype or ("bfloat16" if is_half else "float32")


def recipe_to_show(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe as the model directory holds it, without secrets."""
    return without_secrets(recipe)


def _write(folder: Path, source: Exportable, files: ModelFilesConfig, dtype: str) -> None:
    source.tokenizer.save_for_transformers(folder, source.model.max_positions)
    begin_id, padding_id = (_special_id(folder, source, name) for name in _SPECIAL)
    if source.exported.classifier is not None:
        padding_id = _named_padding(folder, source)
    save_huggingface(
        folder,
        source.exported,
        source.vocab_size,
        _tensors(source, getattr(torch, dtype), files.max_shard_bytes),
        end_ids=source.tokenizer.end_ids,
        begin_id=begin_id,
        padding_id=padding_id,
        dtype=getattr(torch, dtype),
        max_shard_bytes=files.max_shard_bytes,
    )
    recipe = _write_recipe(folder, source)
    (folder / "README.md").write_text(_card(source, files, dtype, recipe).text(), encoding="utf-8")


def _write_adapter(folder: Path, source: Exportable) -> None:
    source.tokenizer.save_for_transformers(folder, source.model.max_positions)
    special_ids = (_special_id(folder, source, name) for name in _SPECIAL)
    save_generation_config(folder, source.tokenizer.end_ids, *special_ids)
    save_adapter(folder, source.model, source.checkpoint.shapes, _trained_tensors(source), _base_name(source))
    _write_recipe(folder, source)


def _base_name(source: Exportable) -> str | None:
    """Return where others find the base model; None for a folder of this machine."""
    path = source.model.path or ""
    return source.recipe.get("base_model", {}).get("hub") or (None if is_local(path) else redact(path))


def _write_recipe(folder: Path, source: Exportable) -> dict[str, Any]:
    recipe = recipe_to_show(source.recipe)
    (folder / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    return recipe


def _trained_tensors(source: Exportable) -> Iterator[tuple[str, Tensor]]:
    """Yield all that was trained, read by groups, because one chunk of the checkpoint holds many small tensors."""
    group: dict[str, Tensor] = {}
    for name, shape in source.checkpoint.shapes.items():
        group[name] = torch.empty(shape)
        if sum(tensor.nbytes for tensor in group.values()) > _GROUP_BYTES:
            yield from _filled(source, group)
            group = {}
    yield from _filled(source, group)


def _filled(source: Exportable, group: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    source.checkpoint.reader.fill(
        Fragment(name, MASTER, 0, tensor.numel(), tensor.view(-1)) for name, tensor in group.items()
    )
    yield from group.items()


def _special_id(folder: Path, source: Exportable, role: str) -> int | None:
    """Return the id of a token by its role: as the base model's settings have it, else as the tokenizer's files do."""
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    name = named_tokens(files, source.run_name).get(role)
    return source.special_ids.get(f"{role}_id", None if name is None else source.tokenizer.id_of(name))


def _named_padding(folder: Path, source: Exportable) -> int:
    """Return a classifier's padding token, and name it in tokenizer_config.json; without one the end token is taken.

    `transformers` pools the last token that is not the padding token, so the tokenizer must pad with no other. Of the
    GPT-2 family it counts positions over padding, too, so padding belongs on the right.
    """
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    tokenizer = source.tokenizer
    name = named_tokens(files, source.run_name).get("pad_token")
    number = None if name is None else tokenizer.id_of(name)
    if number is None or number >= source.vocab_size:
        name, number = tokenizer.end_token, tokenizer.end_of_text_id
    settings = {**json.loads(files.get(SETTINGS_FILE, b"{}")), "pad_token": name, "padding_side": "right"}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return number


def _card(source: Exportable, files: ModelFilesConfig, dtype: str, recipe: Mapping[str, Any]) -> Card:
    return Card(
        title=source.run_name,
        step=source.step,
        model=source.exported,
        vocab_size=source.vocab_size,
        num_parameters=num_parameters(source.exported, source.vocab_size),
        dtype=dtype,
        is_rounded=dtype not in ("float32", dtype_of(ModelFilesConfig(), recipe, source.base_dtype)),
        recipe=recipe,
        num_tokens=source.checkpoint.progress.tokens,
        data=source.data,
        # a run's last figures may hold the loss of an objective that a phase before this step had
        metrics={**_named(source.checkpoint.progress.metrics, "train/"), **_named(source.validation, "val/")},
        license=files.license,
        source_tokens=source.checkpoint.progress.source_tokens,
    )


def _named(metrics: Mapping[str, float], start: str) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(start)}


def _remove_strays(storage: Storage, name: str, manifest: Mapping[str, Any]) -> None:
    """Remove files of an earlier export: other tools read a model.safetensors rather than the files of an index."""
    known = {*manifest["files"], artifact.MANIFEST, artifact.COMMITTED}
    for stray in set(storage.list(name)) - known:
        storage.remove(f"{name}/{stray}")


def _tensors(source: Exportable, dtype: torch.dtype, max_shard_bytes: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights; those of one file are read together, so that each chunk of the checkpoint is read once."""
    shapes, weights = parameter_shapes(source.exported, source.vocab_size), source.weights
    for names in shards_of(source.exported, source.vocab_size, dtype, max_shard_bytes):
        tensors = {name: torch.empty(shapes[name], dtype=dtype) for name in names}
        weights.fill(Fragment(name, MASTER, 0, tensor.numel(), tensor.view(-1)) for name, tensor in tensors.items())
        for name in names:
            yield name, tensors.pop(name)
