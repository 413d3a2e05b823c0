"""A model written in the form of Hugging Face's `transformers`."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from modules.errors import InputError
from modules.huggingface.folder import CONFIG, GENERATION_CONFIG, file_names, stored, to_huggingface
from modules.huggingface.weights import parameter_shapes
from modules.initial_values import VOCABULARY
from modules.model_config import ModelConfig

MAX_SHARD_BYTES = 5 * 10**9


def save_huggingface(
    folder: Path,
    config: ModelConfig,
    vocab_size: int,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    end_ids: Sequence[int] = (),
    begin_id: int | None = None,
    padding_id: int | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json, the weights and, of a language model, generation_config.json into an existing local folder.

    Args:
        folder: Where the files are written.
        config: The model's shape.
        vocab_size: Number of tokens; rows of padding are left out.
        tensors: Our names and unsharded tensors, in the model's order; a tied `head.weight` is skipped. Those of one
            file at a time are consumed, and let go before the next one is requested.
        end_ids: Tokens at which `transformers` stops.
        begin_id: Token that begins a text.
        padding_id: Token that fills up the shorter texts of a batch; a classifier in `transformers` refuses batches
            without it.
        dtype: Of the weights in the files.
        max_shard_bytes: Largest file of weights; a larger model is written as several files with an index.

    Raises:
        InputError: A weight is beyond the range of `dtype`.
        OSError: The disk is full, or refuses the files.
    """
    tokens = {"bos_token_id": begin_id, "eos_token_id": _one_or_all(end_ids)}
    type_name = str(dtype).removeprefix("torch.")
    settings = {**to_huggingface(config, vocab_size), **tokens, "dtype": type_name}
    if config.classifier is None:
        save_generation_config(folder, end_ids, begin_id, padding_id)
    else:
        settings["pad_token_id"] = _padding(padding_id)
    _write_json(folder / CONFIG, settings)
    weights, index = file_names(config)
    shards = shards_of(config, vocab_size, dtype, max_shard_bytes)
    given = (item for item in tensors if item[0] != "head.weight" or not config.tie_embeddings)
    weight_map, num_bytes = {}, 0
    for number, names in enumerate(shards, start=1):
        file = weights if len(shards) == 1 else weights.replace(".", f"-{number:05d}-of-{len(shards):05d}.")
        shard = dict(_stored_tensors(config, vocab_size, names, given, dtype))
        _save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
        num_bytes += sum(tensor.nbytes for tensor in shard.values())
        del shard
    if len(shards) > 1:
        _write_json(folder / index, {"metadata": {"total_size": num_bytes}, "weight_map": weight_map})


def _padding(padding_id: int | None) -> int:
    if padding_id is None:
        raise InputError("a classifier needs a token that fills up texts; name one as pad_token of its tokenizer")
    return padding_id


def save_generation_config(folder: Path, end_ids: Sequence[int], begin_id: int | None, padding_id: int | None) -> None:
    """Write generation_config.json; the arguments are those of `save_huggingface`."""
    tokens = {"bos_token_id": begin_id, "eos_token_id": _one_or_all(end_ids), "pad_token_id": padding_id}
    _write_json(folder / GENERATION_CONFIG, {name: value for name, value in tokens.items() if value is not None})


def _one_or_all(ids: Sequence[int]) -> int | list[int] | None:
    return ids[0] if len(ids) == 1 else list(ids) or None


def shards_of(config: ModelConfig, vocab_size: int, dtype: torch.dtype, max_bytes: int) -> list[list[str]]:
    """Return the names of our parameters in each file: of at most `max_bytes` together, or a single larger one."""
    shards: list[list[str]] = [[]]
    num_bytes = 0
    for name, shape in parameter_shapes(config, vocab_size).items():
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and num_bytes + size > max_bytes:
            shards.append([])
            num_bytes = 0
        shards[-1].append(name)
        num_bytes += size
    return shards


def _stored_tensors(
    config: ModelConfig, vocab_size: int, names: Sequence[str], given: Iterator[tuple[str, Tensor]], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of `transformers` for ours of these names, the vocabulary without its padding."""
    for expected in names:
        name, tensor = next(given)
        assert name == expected, f"{name} instead of {expected}"
        if name in VOCABULARY:
            tensor = tensor[:vocab_size]
        where = stored(config, name, len(tensor))
        tensor = _converted(name, tensor.detach(), dtype)
        for (stored_name, _), rows in zip(where.tensors, tensor.split([n for _, n in where.tensors]), strict=True):
            yield stored_name, (rows.t() if where.is_transposed else rows).contiguous().cpu()


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    converted = tensor.to(dtype)
    if dtype == torch.float16 and converted.isinf().any():
        raise InputError(
            f"{name}: holds numbers beyond {torch.finfo(dtype).max:g}, the largest of float16; export it as bfloat16"
        )
    return converted


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        # `save_file` makes a file that its owner alone may read; the others in the folder have the usual permissions
        path.chmod((path.parent / CONFIG).stat().st_mode)
    except SafetensorError as error:
        # its text ends in the system's own error number, by which a full disk is told from anything else
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), str(error), str(path)) from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
