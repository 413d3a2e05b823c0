"""The model from which a training continues: its shape, its tokenizer and the identity of its content."""

from dataclasses import dataclass
from typing import Any

from modules.config import TokenizerConfig
from modules.data.tokenizer import END_OF_TEXT, build_tokenizer, can_end_documents, read_vocabulary
from modules.errors import InputError
from modules.huggingface.folder import CONFIG, read_bytes, read_config, read_end_ids, weight_files
from modules.model_config import ModelConfig
from orchestrator.artifacts import artifact
from orchestrator.artifacts.model_folders import FoundModel, find_model
from orchestrator.errors import ConfigError
from orchestrator.storage.input_files import find_files


@dataclass(frozen=True)
class BaseModel:
    """A model from which a training continues."""

    config: ModelConfig
    """Its shape, and where every worker finds it."""
    tokenizer: TokenizerConfig
    identity: dict[str, Any]
    """What changes with its content."""


def open_base_model(config: ModelConfig) -> BaseModel:
    """Return the model at `config.path`, with all that can be wrong with it found before anything is written.

    Args:
        config: The configuration as given; fields of the shape are left at their defaults.

    Raises:
        UserError, InputError: there is no such model, or it cannot be continued.
        ArtifactError: it is damaged.
    """
    from modules.huggingface.weights import Weights  # imports torch, which only this case needs in the driver

    assert config.path is not None
    found = find_model(config.path, config.revision)
    _verify(found)
    stored = read_config(found.folder)
    tokenizer, num_tokens = _tokenizer(found)
    Weights(found.folder, stored)
    try:
        shape = config.of(_path_for_workers(config.path, found), found.commit, stored)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    vocab_size = max(stored.vocab_size or 0, num_tokens)
    return BaseModel(shape.model_copy(update={"vocab_size": vocab_size}), tokenizer, _identity(config.path, found))


def _path_for_workers(path: str, found: FoundModel) -> str:
    local = found.folder.storage.local_path(found.folder.name)
    return path if found.commit or local is None else str(local)


def _verify(found: FoundModel) -> None:
    """Verify a model of ours: every byte on a local disk, presence and sizes in a remote store."""
    storage, name = found.folder.storage, found.folder.name
    if found.is_ours:
        (artifact.verify if storage.is_local else artifact.verify_sizes)(storage, name)


def _identity(path: str, found: FoundModel) -> dict[str, Any]:
    if found.commit:
        return {"hub": path, "commit": found.commit}
    storage, name = found.folder.storage, found.folder.name
    if found.is_ours:
        return {"committed": storage.read_bytes(f"{name}/{artifact.COMMITTED}").decode().strip()}
    files = [CONFIG, *weight_files(found.folder)]
    return {"files": [[file, find_files([f"{found.folder.url}/{file}"])[0].identity()] for file in files]}


def _tokenizer(found: FoundModel) -> tuple[TokenizerConfig, int]:
    """Return how the model's own tokenizer is read, and the number of rows that it needs."""
    folder = found.folder
    if not folder.has("tokenizer.json"):
        raise InputError(f"{folder.url}: no tokenizer.json beside the weights; save the tokenizer there")
    config = TokenizerConfig(kind="file", path=f"{folder.url}/tokenizer.json")
    content = read_bytes(folder, "tokenizer.json")
    names = {number: name for name, number in read_vocabulary(config, content).items()}
    end_ids = [number for number in read_end_ids(folder) if number in names]
    # a model may stop at a line break, which ends no document
    end_token = next((names[n] for n in end_ids if can_end_documents(config, content, names[n])), None)
    config = config.model_copy(update={"end_token": None if end_token == END_OF_TEXT else end_token})
    return config, build_tokenizer(config, lambda: iter(()), content).vocab_size
