"""Adapters in the form of PEFT: a folder with adapter_config.json and adapter_model.safetensors.

Rows of tokens are written as its `trainable_token_indices`: values that replace those of the base model, stored once
where the embeddings are tied. Its other form, `save_embedding_layers`, stores the whole vocabulary; that is read, and
never written. A head is one of its `modules_to_save`.

Source: peft 0.21.2, utils/save_and_load.py (`get_peft_model_state_dict`) and tuners/lora/config.py.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.errors import InputError
from modules.huggingface.adapter_settings import read_settings, settings_of
from modules.huggingface.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelFolder, read_bytes, stored
from modules.huggingface.safetensors_header import StoredTensor, read_header
from modules.huggingface.weights import parameter_shapes
from modules.initial_values import VOCABULARY
from modules.lora import parts_of, trained_rows_of, weights_of
from modules.model_config import LoraConfig, ModelConfig

_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_HEAD = "score.weight"


@dataclass(frozen=True)
class Adapter:
    """What was trained beside a model's weights."""

    scale: float
    """What the product of an adapter's weights is multiplied by."""
    tokens: tuple[int, ...]
    """Those with rows of their own."""
    vocab_size: int
    """Number of tokens of the model with it."""
    tensors: Mapping[str, Tensor]
    """Float32, by our names of parameters."""


def save_adapter(
    folder: Path,
    config: ModelConfig,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterator[tuple[str, Tensor]],
    base: str | None = None,
) -> None:
    """Write an adapter into an existing local folder, one tensor at a time.

    Args:
        folder: Where the files are written.
        config: The model with its adapters.
        shapes: Of all that was trained, by our names.
        tensors: The same in that order, unsharded.
        base: The frozen model, where others find it.

    Raises:
        InputError: A tensor is empty or of another shape, as that of one worker is where weights are sharded.
        OSError: The disk is full, or refuses the files.
    """
    names = _peft_names(config, shapes)
    settings = settings_of(config, shapes, base)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    with open(folder / ADAPTER_WEIGHTS, "wb") as file:
        file.write(_header({names[name]: shape for name, shape in shapes.items()}))
        for expected, shape in shapes.items():
            name, tensor = next(tensors)
            assert name == expected, f"{name} instead of {expected}"
            if list(tensor.shape) != list(shape) or not tensor.numel():
                raise InputError(f"{names[name]}: has shape {list(tensor.shape)} instead of {list(shape)}")
            file.write(tensor.detach().float().contiguous().cpu().numpy().data.cast("B"))


def _peft_names(config: ModelConfig, names: Mapping[str, Any]) -> dict[str, str]:
    """Return PEFT's name of each of our parameters."""
    layers = dict.fromkeys(name.partition(".adapter.")[0] for name in names if ".adapter." in name)
    known = {_HEAD: _PREFIX + _HEAD}
    for name in VOCABULARY:
        path = stored(config, name, 1).tensors[0][0].removesuffix(".weight")
        known[trained_rows_of(name)] = f"{_PREFIX}{path}.token_adapter.trainable_tokens_delta"
    for layer in layers:
        for part in parts_of(config, layer, 2):
            a, b = weights_of(layer, part)
            known |= {a: f"{_PREFIX}{part.path}.lora_A.weight", b: f"{_PREFIX}{part.path}.lora_B.weight"}
    return {name: known[name] for name in names}


def _header(shapes: Mapping[str, Sequence[int]]) -> bytes:
    """Return what comes before the float32 tensors of a safetensors file.

    Source: https://github.com/huggingface/safetensors#format
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        stop = offset + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_adapter(folder: ModelFolder, config: ModelConfig) -> Adapter:
    """Return an adapter for a model of this shape, whoever made it.

    Args:
        folder: Of PEFT's form.
        config: The model, with its vocabulary size.

    Raises:
        InputError: It cannot be read, is of a kind that is not computed here, or belongs to another model.
    """
    settings = read_settings(folder, ADAPTER_CONFIG)
    if not folder.has(ADAPTER_WEIGHTS):
        pickle = "; a .bin file is a pickle, which is never read" if folder.has(_PICKLE) else ""
        raise InputError(f"{folder.url}: no {ADAPTER_WEIGHTS}{pickle}; save it anew with peft's save_pretrained")
    held = _without_copies(read_header(folder, ADAPTER_WEIGHTS)[0])
    expected = _expected(config, settings.rank, len(settings.tokens), held)
    where = f"{folder.url}/{ADAPTER_WEIGHTS}"
    for key, tensor in held.items():
        _check(where, key, tensor, expected)
    for key in held:
        other = key.replace(".lora_A.", ".lora_B.") if ".lora_A." in key else key.replace(".lora_B.", ".lora_A.")
        if other not in held:
            raise InputError(f"{where}: {other} is missing beside {key}; the file is incomplete, save it anew")
    if not any(".lora_A." in key for key in held):
        raise InputError(f"{where}: holds no adapter of a linear layer")
    data = read_bytes(folder, ADAPTER_WEIGHTS)
    tensors = {expected[key][0]: _values(data, tensor) for key, tensor in held.items()}
    if config.tie_embeddings:
        _tie(where, tensors)
    rows = [len(tensors[name]) for name in VOCABULARY if name in tensors]
    vocab_size = max([config.vocab_size or 0, *(token + 1 for token in settings.tokens), *rows])
    return Adapter(settings.scale, settings.tokens, vocab_size, tensors)


def _without_copies(held: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors that peft reads: where the vocabulary has grown, it writes a saved module three times over."""
    ends = (".modules_to_save.weight", ".original_module.weight")
    copies = {path + end for path in (key.removesuffix(".weight") for key in held) for end in ends}
    return {key: tensor for key, tensor in held.items() if key not in copies}


def _tie(where: str, tensors: dict[str, Tensor]) -> None:
    """Leave out what is the head's where it is tied to the embedding.

    Raises:
        InputError: peft has trained the embedding alone, or both apart, so that they are not tied any more.
    """
    embedding, head = VOCABULARY
    whole = tensors.get(embedding), tensors.pop(head, None)
    rows = tensors.get(trained_rows_of(embedding)), tensors.pop(trained_rows_of(head), None)
    is_tied = (whole == (None, None) or _are_equal(*whole)) and (rows[1] is None or _are_equal(*rows))
    if not is_tied:
        raise InputError(
            f"{where}: the embedding and the output head have other weights, and those of the model are tied; merge "
            "the adapter with peft (merge_and_unload), and give the merged model"
        )


def _are_equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _expected(
    config: ModelConfig, rank: int, num_tokens: int, held: Mapping[str, StoredTensor]
) -> dict[str, tuple[str, list[int]]]:
    """Return our name and the shape of each tensor that an adapter of this model may have, by PEFT's name."""
    assert config.vocab_size is not None
    # a tied head may be named, too
    untied = {"lora": LoraConfig(rank=rank, trained_tokens=tuple(range(num_tokens))), "tie_embeddings": False}
    shapes = parameter_shapes(config.model_copy(update=untied), config.vocab_size)
    trained = {name: list(shape) for name, shape in shapes.items() if ".adapter." in name or "trained_rows" in name}
    trained |= {_HEAD: list(shapes[_HEAD])} if _HEAD in shapes else {}
    expected = {key: (name, trained[name]) for name, key in _peft_names(config, trained).items()}
    for name in VOCABULARY:
        path = _PREFIX + stored(config, name, 1).tensors[0][0].removesuffix(".weight")
        for key in (f"{path}.weight", f"{path}.token_adapter.base_layer.weight"):
            # as many rows as it has, if these are not fewer than the model's
            num_rows = max(config.vocab_size, held[key].shape[0] if key in held else 0)
            expected[key] = name, [num_rows, config.hidden_dim]
    return expected


def _check(where: str, key: str, tensor: StoredTensor, expected: Mapping[str, tuple[str, list[int]]]) -> None:
    if key not in expected:
        raise InputError(
            f"{where}: {key.removeprefix(_PREFIX)} has no place in the model that it is to be used with; it was "
            "trained beside another one, or adapts what is not adapted here"
        )
    shape = expected[key][1]
    if list(tensor.shape) != shape:
        raise InputError(
            f"{where}: {key.removeprefix(_PREFIX)} has shape {list(tensor.shape)}, and the model that it is to be used "
            f"with needs {shape}; it was trained beside another one"
        )


def _values(data: bytes, tensor: StoredTensor) -> Tensor:
    stop = tensor.start + math.prod(tensor.shape) * tensor.dtype.itemsize
    return torch.frombuffer(bytearray(data[tensor.start : stop]), dtype=tensor.dtype).view(tensor.shape).float()
