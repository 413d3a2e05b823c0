"""A folder of model files, wherever it lies, and the settings in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from modules.errors import InputError
from modules.huggingface import classifier, gpt2, llama
from modules.huggingface.settings import Settings
from modules.huggingface.stored import Stored
from modules.model_config import ModelConfig

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OWN_WEIGHTS, OWN_INDEX = "classifier.safetensors", "classifier.safetensors.index.json"
"""Of a model that `transformers` must not open: a class of it that is named by the user ignores the model_type."""
HEAD_TENSORS = ("lm_head.", "score.")
"""Beginnings of the names of a head's tensors."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class ModelFolder(Protocol):
    """The files of a model, read by name."""

    @property
    def url(self) -> str:
        """Where the folder is, for messages."""
        ...

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        ...

    def num_bytes(self, name: str) -> int:
        """Return the size of a file."""
        ...

    def read_into(self, name: str, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes of a file from `start` on; any number of threads may call it."""
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A model's folder on this machine."""

    path: Path

    @property
    def url(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def num_bytes(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def read_into(self, name: str, start: int, target: memoryview) -> None:
        with open(self.path / name, "rb", buffering=0) as file:
            file.seek(start)
            while target:
                count = file.readinto(target)
                if not count:
                    raise InputError(f"{self.path / name}: ends too early; fetch it again")
                target = target[count:]


def read_bytes(folder: ModelFolder, name: str) -> bytes:
    """Return the whole content of a file."""
    data = bytearray(folder.num_bytes(name))
    folder.read_into(name, 0, memoryview(data))
    return bytes(data)


def read_json(folder: ModelFolder, name: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    where = f"{folder.url}/{name}"
    try:
        content = json.loads(read_bytes(folder, name))
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: not readable as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: holds no JSON object; fetch it again")
    return content


def read_config(folder: ModelFolder) -> ModelConfig:
    """Return the shape of a folder's model, with its vocabulary size.

    Raises:
        InputError: There is no config.json, or it cannot be used.
    """
    if not folder.has(CONFIG):
        raise InputError(f"{folder.url}: no {CONFIG}; give a folder with {CONFIG} and {WEIGHTS}")
    return from_huggingface(read_json(folder, CONFIG))


def weight_files(folder: ModelFolder) -> list[str]:
    """Return the names of a folder's safetensors files.

    Raises:
        InputError: There are none, or they lie elsewhere.
    """
    for weights, index in ((WEIGHTS, INDEX), (OWN_WEIGHTS, OWN_INDEX)):
        if folder.has(weights):
            return [weights]
        if folder.has(index):
            return _files_of(folder, index)
    if any(map(folder.has, _PICKLES)):
        raise InputError(
            f"{folder.url}: only .bin weights, which are pickles and are never read; convert them with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    raise InputError(f"{folder.url}: no {WEIGHTS}; give a folder with {CONFIG} and {WEIGHTS}")


def _files_of(folder: ModelFolder, index: str) -> list[str]:
    files = sorted(set(read_json(folder, index).get("weight_map", {}).values()))
    for file in files:
        if "/" in file or "\\" in file:
            raise InputError(f"{folder.url}/{index}: {file} lies outside the folder; fetch the model again")
        if not folder.has(file):
            raise InputError(f"{folder.url}/{file}: missing; the folder is incomplete, fetch the model again")
    return files


def from_huggingface(content: Mapping[str, Any]) -> ModelConfig:
    """Return our config, with the vocabulary size, from the content of a config.json.

    Raises:
        InputError: The model is of another type, or a variant that is not computed here.
    """
    is_bidirectional = content.get("model_type") == classifier.OWN_TYPE
    settings = Settings(classifier.with_body(content) if is_bidirectional else content)
    model_type = settings.get("model_type")
    if model_type != "gpt2" and model_type not in llama.MODEL_TYPES:
        known = ", ".join(map(repr, ("gpt2", *llama.MODEL_TYPES)))
        raise InputError(f"config.json: model_type is {model_type!r}; only {known} can be loaded")
    try:
        shape = (gpt2 if model_type == "gpt2" else llama).from_settings(settings)
        config = shape.model_copy(update={"classifier": classifier.from_settings(settings, is_bidirectional)})
    except (ValidationError, TypeError, ValueError) as error:
        raise InputError(f"config.json: {_reason(error)}") from error
    settings.check_all_are_known()
    return config


def to_huggingface(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """Return the config.json from which `transformers` builds a model with the same logits.

    It builds none from that of a bidirectional classifier, for which it has no class.
    """
    settings = _family(config).to_settings(config)
    return {
        **(classifier.to_settings(config.classifier, settings) if config.classifier else settings),
        "vocab_size": vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": 0.02,
    }


def file_names(config: ModelConfig) -> tuple[str, str]:
    """Return the names of the file of a model's weights, and of the index if there are several."""
    is_own = config.classifier is not None and config.classifier.attention == "bidirectional"
    return (OWN_WEIGHTS, OWN_INDEX) if is_own else (WEIGHTS, INDEX)


def stored(config: ModelConfig, name: str, num_rows: int) -> Stored:
    """Return where one of our parameters, of `num_rows` rows without vocabulary padding, lies."""
    return _family(config).stored(config, name, num_rows)


def full_name(config: ModelConfig, name: str) -> str:
    """Return the name of a tensor with its prefix, which files of a Transformer without its head leave out."""
    prefix = _family(config).PREFIX
    return name if name.startswith((prefix, *HEAD_TENSORS)) else prefix + name


def holds_no_weights(config: ModelConfig, name: str) -> bool:
    """Return whether a tensor of this name is a leftover of older versions of `transformers`, such as a mask."""
    return name.endswith(_family(config).LEFT_OVER)


def _family(config: ModelConfig) -> Any:
    return gpt2 if config.family == "gpt2" else llama


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
