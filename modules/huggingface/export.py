"""A model written in the form of Hugging Face's `transformers`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from modules.huggingface.folder import CONFIG, INDEX, WEIGHTS, stored, to_huggingface
from modules.initial_values import VOCABULARY
from modules.model_config import ModelConfig

_MAX_SHARD_BYTES = 5 * 10**9


def save_huggingface(
    folder: Path,
    config: ModelConfig,
    vocab_size: int,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    end_ids: Sequence[int] = (),
    begin_id: int | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> None:
    """Write config.json and model.safetensors, or shards of it with an index, into an existing local folder.

    Args:
        folder: Where the files are written.
        config: The model's shape.
        vocab_size: Number of tokens; rows of padding are left out.
        tensors: Our names and unsharded tensors, consumed one at a time; a tied `head.weight` is skipped.
        end_ids: Tokens at which `transformers` stops, written to config.json.
        begin_id: Token that begins a text.
        dtype: Of the weights in the files.
        max_shard_bytes: Bytes held in memory at once; a larger model is written as several files.
    """
    settings = {
        **to_huggingface(config, vocab_size),
        "bos_token_id": begin_id,
        "eos_token_id": end_ids[0] if len(end_ids) == 1 else list(end_ids) or None,
        "dtype": str(dtype).removeprefix("torch."),
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    files: list[list[str]] = []
    num_bytes = 0
    for shard in _shards(huggingface_tensors(config, vocab_size, tensors, dtype), max_shard_bytes):
        save_file(shard, _part(folder, len(files)), metadata={"format": "pt"})
        files.append(list(shard))
        num_bytes += sum(tensor.nbytes for tensor in shard.values())
    _name_shards(folder, files, num_bytes)


def huggingface_tensors(
    config: ModelConfig, vocab_size: int, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of `transformers` for ours, the vocabulary without its padding."""
    for name, tensor in tensors:
        if name == "head.weight" and config.tie_embeddings:
            continue
        if name in VOCABULARY:
            tensor = tensor[:vocab_size]
        where = stored(config, name, len(tensor))
        tensor = tensor.detach().to(dtype)
        for (stored_name, _), rows in zip(where.tensors, tensor.split([n for _, n in where.tensors]), strict=True):
            yield stored_name, (rows.t() if where.is_transposed else rows).contiguous().cpu()


def _shards(tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Yield consecutive tensors in dicts of at most `max_shard_bytes`; a larger tensor gets a dict of its own."""
    shard: dict[str, Tensor] = {}
    num_bytes = 0
    for name, tensor in tensors:
        if shard and num_bytes + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, num_bytes = {}, 0
        shard[name] = tensor
        num_bytes += tensor.nbytes
    yield shard


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"


def _name_shards(folder: Path, files: list[list[str]], num_bytes: int) -> None:
    """Rename the shards, since their names hold the number of shards, and write the index if there are several."""
    if len(files) == 1:
        _part(folder, 0).rename(folder / WEIGHTS)
        return
    weight_map = {}
    for number, names in enumerate(files):
        file_name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        _part(folder, number).rename(folder / file_name)
        weight_map |= dict.fromkeys(names, file_name)
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
