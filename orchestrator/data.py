"""Prepared data: found by the recipe's fingerprint, or made. The same text and settings give the same artifact."""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from modules.config import DataConfig, TokenizerConfig
from modules.data.documents import SourceFile, check_formats
from modules.data.prepare import prepare_tokens
from modules.data.sources import stdlib_files
from modules.data.tokenizer import Tokenizer
from orchestrator import artifact
from orchestrator.errors import ConfigError
from orchestrator.recipe import fingerprint
from orchestrator.staging import staging_folder
from orchestrator.storage import Storage, find_files

_FORMAT = 1
"""Changes with the bytes that the same text and settings give."""
Progress = Callable[[int, int], None]
"""Receives bytes of text and tokens done."""


def prepared_data(
    storage: Storage,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    *,
    max_vocab_size: int | None,
    progress: Callable[[int], Progress],
) -> str:
    """Return the name of the prepared data; make it first if it is not there.

    Args:
        max_vocab_size: The model's vocabulary; None where it follows the tokenizer's.
        progress: Is given the bytes to read, and gives what receives the progress.

    Raises:
        UserError: the text cannot be used, or the tokenizer is too large; nothing is left behind.
    """
    files = _source_files(data)
    tokenizer_file = _tokenizer_file(tokenizer)
    recipe = data_recipe(data, tokenizer, files, tokenizer_file)
    name = f"data/{data.source}-{fingerprint(recipe)}"
    if artifact.is_committed(storage, name):
        return name
    with staging_folder(storage, name) as folder:
        total = sum(file.num_bytes for file in files)
        prepare_tokens(files, data, tokenizer, tokenizer_file, folder, progress(min(total, data.max_bytes or total)))
        check_vocab_size(Tokenizer.load(folder / "tokenizer.json").vocab_size, max_vocab_size)
        artifact.publish(storage, folder, name, {"kind": "data", "recipe": recipe})
    return name


def data_recipe(
    data: DataConfig, tokenizer: TokenizerConfig, files: Sequence[Any], tokenizer_file: bytes | None
) -> dict[str, Any]:
    """Return what decides the tokens: the text's identity, the settings, and the version of the format."""
    return {
        "command": "prepare",
        "format": _FORMAT,
        "data": data.model_dump(mode="json", exclude={"path", "num_processes"}),
        "tokenizer": tokenizer.model_dump(mode="json", exclude={"path"}),
        "tokenizer_file": artifact.digest_bytes(tokenizer_file).xxh3_128 if tokenizer_file else None,
        # by content and not by place, so that the same text prepared elsewhere is the same data
        "files": [[PurePosixPath(file.name).name, file.identity()] for file in files] or list(data.path),
    }


def check_vocab_size(vocab_size: int, max_vocab_size: int | None) -> None:
    """Refuse a tokenizer that the model has no rows for.

    Raises:
        ConfigError: the tokenizer is larger than the model's vocabulary.
    """
    if max_vocab_size is not None and vocab_size > max_vocab_size:
        raise ConfigError(
            f"model.vocab_size={max_vocab_size}: smaller than the tokenizer's {vocab_size} tokens; "
            f"set it to at least {vocab_size}, or to null to follow the tokenizer"
        )


def _source_files(data: DataConfig) -> Sequence[SourceFile]:
    if data.source == "huggingface":
        return ()
    files = stdlib_files() if data.source == "stdlib" else find_files(data.path)
    check_formats(files)
    return files


def _tokenizer_file(tokenizer: TokenizerConfig) -> bytes | None:
    if tokenizer.path is None:
        return None
    with find_files([tokenizer.path])[0].open() as file:
        return file.read()
