"""Conversion from and to Hugging Face checkpoints of the GPT-2 family. No pickle is read or written."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modules.config import ModelConfig
from modules.errors import InputError
from modules.model import GPT

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_SHARD_BYTES = 5 * 10**9
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
# Settings of GPT-2 configs that change the computation, with the only supported value of each.
_SUPPORTED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}

# Our names within a block, and those of `transformers`. Its Conv1D stores a weight as [in, out], our Linear as
# [out, in].
_BLOCK_NAMES = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_MODEL_NAMES = {
    "token_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
_VOCABULARY = ("token_embedding.weight", "head.weight")


def to_huggingface(config: ModelConfig, vocab_size: int, end_of_text_id: int | None = None) -> dict[str, Any]:
    """Return the config.json from which `transformers` builds a GPT2LMHeadModel with the same logits."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.hidden_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.feed_forward_dim,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_epsilon,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "dtype": "float32",
        **_SUPPORTED,
    }


def from_huggingface(settings: Mapping[str, Any]) -> tuple[ModelConfig, int]:
    """Return our config and the vocabulary size from the settings in a config.json.

    Raises:
        InputError: The model is of another type, or a variant of GPT-2 that is not supported.
    """
    model_type = settings.get("model_type")
    if model_type != "gpt2":
        raise InputError(f"config.json: model_type is {model_type!r}; only 'gpt2' can be loaded")
    for name, expected in _SUPPORTED.items():
        if settings.get(name, expected) != expected:
            raise InputError(f"config.json: {name} is {settings[name]!r}; only {expected!r} can be loaded")
    activation = settings.get("activation_function", "gelu_new")
    if activation not in _TANH_GELU:
        supported = " and ".join(_TANH_GELU)
        raise InputError(f"config.json: activation_function is {activation!r}; only {supported} can be loaded")
    try:
        return _model_config(settings), int(settings["vocab_size"])
    except KeyError as error:
        raise InputError(f"config.json: {error.args[0]} is missing; take it from the original file") from error
    except (ValidationError, TypeError, ValueError) as error:
        raise InputError(f"config.json: {error}") from error


def save_huggingface(
    folder: Path,
    config: ModelConfig,
    vocab_size: int,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    end_of_text_id: int | None = None,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> None:
    """Write config.json and model.safetensors, or shards of it with an index, into an existing local folder.

    Args:
        folder: Where the files are written.
        config: The model's shape.
        vocab_size: Number of tokens; rows of padding are left out.
        tensors: Our names and unsharded tensors, consumed one at a time; a tied `head.weight` is skipped.
        end_of_text_id: Token at which `transformers` stops, written to config.json.
        max_shard_bytes: Bytes held in memory at once; a larger model is written as several files.
    """
    settings = to_huggingface(config, vocab_size, end_of_text_id)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    shards = _shards(huggingface_tensors(config, vocab_size, tensors), max_shard_bytes)
    files: list[list[str]] = []
    num_bytes = 0
    for shard in shards:
        save_file(shard, _part(folder, len(files)), metadata={"format": "pt"})
        files.append(list(shard))
        num_bytes += sum(tensor.nbytes for tensor in shard.values())
    _name_shards(folder, files, num_bytes)


def huggingface_tensors(
    config: ModelConfig, vocab_size: int, tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of `transformers` for ours: Conv1D weights transposed, vocabulary without padding."""
    for name, tensor in tensors:
        if name == "head.weight" and config.tie_embeddings:
            continue
        if name in _VOCABULARY:
            tensor = tensor[:vocab_size]
        elif _is_transposed(name):
            tensor = tensor.t()
        yield huggingface_name(name), tensor.detach().contiguous().cpu()


def huggingface_name(name: str) -> str:
    """Return the name in `transformers` of one of our parameters."""
    if name in _MODEL_NAMES:
        return _MODEL_NAMES[name]
    _, layer, rest = name.split(".", 2)
    module, kind = rest.rsplit(".", 1)
    return f"transformer.h.{layer}.{_BLOCK_NAMES[module]}.{kind}"


def load_huggingface(folder: Path, device: torch.device | str = "cpu") -> GPT:
    """Return a float32 model with the weights of a local Hugging Face folder, read tensor by tensor.

    Raises:
        InputError: A file or tensor is missing, unreadable or of another shape; the message names it.
    """
    config, vocab_size = read_config(folder)
    weights = _open_weights(folder)
    if config.tie_embeddings:
        weights.tie([huggingface_name(name) for name in _VOCABULARY])
    with torch.device(device):
        model = GPT(config, vocab_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = weights.read(huggingface_name(name))
            source = source.t() if _is_transposed(name) else source
            target = parameter[:vocab_size] if name in _VOCABULARY else parameter
            if source.shape != target.shape:
                expected, found = list(target.shape), list(source.shape)
                raise InputError(
                    f"{huggingface_name(name)}: the file has shape {found}, but config.json requires {expected}"
                )
            parameter[len(target) :] = 0
            target.copy_(source)
    return model


def read_config(folder: Path) -> tuple[ModelConfig, int]:
    """Return our config and the vocabulary size of a local Hugging Face folder.

    Raises:
        InputError: There is no config.json, or it cannot be used.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json; give a folder with config.json and {_WEIGHTS}")
    return from_huggingface(_read_json(path))


def read_end_ids(folder: Path) -> list[int]:
    """Return the tokens at which the model of a Hugging Face folder ends a text, that of config.json first."""
    found: list[int] = []
    for path in (folder / "config.json", folder / "generation_config.json"):
        ids = _read_json(path).get("eos_token_id") if path.is_file() else None
        found += [number for number in (ids if isinstance(ids, list) else [ids]) if isinstance(number, int)]
    return list(dict.fromkeys(found))


class _Weights:
    """Tensors of one or several safetensors files, read by name on demand."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._file_of: dict[str, Any] = {}
        for path in files:
            try:
                opened = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error
            # The hub's own gpt2 files hold the Transformer without its head, so their names lack the prefix.
            stored = {_full_name(name): (opened, name) for name in list(opened.keys())}
            # safetensors keeps one of several names of the same tensor, and notes the others in its metadata
            names = {_full_name(other): _full_name(kept) for other, kept in (opened.metadata() or {}).items()}
            self._file_of |= {other: stored[kept] for other, kept in names.items() if kept in stored} | stored

    def tie(self, names: Sequence[str]) -> None:
        """Read the one of these names that is stored under all of them."""
        stored = [name for name in names if name in self._file_of]
        for name in names if stored else ():
            self._file_of.setdefault(name, self._file_of[stored[0]])

    def read(self, name: str) -> Tensor:
        if name not in self._file_of:
            raise InputError(f"{name}: not among the weights; the folder is incomplete or of another model")
        opened, stored_name = self._file_of[name]
        return opened.get_tensor(stored_name)


def _open_weights(folder: Path) -> _Weights:
    if (folder / _WEIGHTS).is_file():
        return _Weights([folder / _WEIGHTS])
    if (folder / _INDEX).is_file():
        names = sorted(set(_read_json(folder / _INDEX).get("weight_map", {}).values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise InputError(f"{folder / _INDEX}: {outside[0]} lies outside the folder; fetch the model again")
        return _Weights(folder / name for name in names)
    if any(folder.glob("*.bin")):
        raise InputError(
            f"{folder}: only .bin weights, which are pickles and are never read; convert them with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    raise InputError(f"{folder}: no {_WEIGHTS}; give a folder with config.json and {_WEIGHTS}")


def _model_config(settings: Mapping[str, Any]) -> ModelConfig:
    return ModelConfig(
        num_layers=settings["n_layer"],
        num_heads=settings["n_head"],
        hidden_dim=settings["n_embd"],
        mlp_dim=settings.get("n_inner"),
        max_positions=settings["n_positions"],
        vocab_size=settings["vocab_size"],
        dropout=settings.get("resid_pdrop", 0.1),
        tie_embeddings=settings.get("tie_word_embeddings", True),
        norm_epsilon=settings.get("layer_norm_epsilon", 1e-5),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; fetch it again")
    return content


def _is_transposed(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight") and "norm." not in name


def _full_name(name: str) -> str:
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


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
        _part(folder, 0).rename(folder / _WEIGHTS)
        return
    weight_map = {}
    for number, names in enumerate(files):
        file_name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        _part(folder, number).rename(folder / file_name)
        weight_map |= dict.fromkeys(names, file_name)
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
