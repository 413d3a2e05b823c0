"""Prepared data, opened: its small files are read, and of the others what is used, verified, when it is used."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modules.data.number_files import NumberFiles
from modules.data.shards import DATA_FILE, TOKENIZER_FILE, TokenData
from orchestrator.artifacts import artifact
from orchestrator.artifacts.cached_files import CachedFiles
from orchestrator.artifacts.chunk_cache import ChunkCache
from orchestrator.artifacts.source_rows import SourceRows
from orchestrator.artifacts.verified_files import VerifiedFiles
from orchestrator.errors import ArtifactError
from orchestrator.storage.local import cache_folder
from orchestrator.storage.store import Storage

if TYPE_CHECKING:
    from modules.data.example_data import ExampleData

log = logging.getLogger(__name__)
_TOKENIZER_FOLDER = "tokenizer/"


def open_tokens(storage: Storage, name: str, cache_bytes: int) -> TokenData:
    """Return the prepared text `name`.

    Args:
        storage: Where it is.
        name: Its artifact.
        cache_bytes: Bytes of remote data that this machine keeps at most.

    Raises:
        ArtifactError: it is damaged, as far as it is read; the message names the remedy.
    """
    with remedy(storage, name):
        folder = small_files(storage, name)
        files = _files(storage, name, cache_bytes)
        _fit_to_cache(folder, files)
        return TokenData.open(folder, files)


def open_examples(storage: Storage, name: str, cache_bytes: int) -> "ExampleData":
    """Return the prepared examples `name`; arguments and errors are those of `open_tokens`."""
    from modules.data.example_data import ExampleData

    with remedy(storage, name):
        return ExampleData.open(small_files(storage, name), _files(storage, name, cache_bytes))


def open_source_rows(storage: Storage, name: str, split: str, cache_bytes: int) -> SourceRows | None:
    """Return where the documents or examples of a split come from; None if an earlier version has prepared them."""
    with remedy(storage, name):
        return SourceRows.open(_files(storage, name, cache_bytes), artifact.read_manifest(storage, name), split)


def small_files(storage: Storage, name: str) -> Path:
    """Return a local folder with the description and the tokenizer of prepared data, verified.

    Raises:
        ArtifactError: there is no such data, or one of these files is damaged.
    """
    return artifact.local_copy(storage, name, cache_folder(), needs=_is_small)


def check_data(storage: Storage, name: str) -> None:
    """Raise ArtifactError, with the remedy, unless the prepared data `name` is whole.

    In a remote store only presence and size of each file are checked, and in a local one what this machine has verified
    before is not read again; who uses the data verifies what it uses.
    """
    with remedy(storage, name):
        if storage.is_local:
            _local_files(storage, name).verify()
        else:
            artifact.verify_sizes(storage, name)


@contextmanager
def remedy(storage: Storage, name: str) -> Iterator[None]:
    """Say in an ArtifactError what to do about damaged prepared data."""
    try:
        yield
    except ArtifactError as error:
        text, what_to_do = str(error), _remedy(storage, name)
        raise ArtifactError(text if text.endswith(what_to_do) else f"{text}; {what_to_do}") from None


def _remedy(storage: Storage, name: str) -> str:
    return f"when no run uses it, remove {storage.url(name)}, and the same command prepares it anew"


def _is_small(file: str) -> bool:
    return file in (DATA_FILE, TOKENIZER_FILE) or file.startswith(_TOKENIZER_FOLDER)


def _files(storage: Storage, name: str, cache_bytes: int) -> VerifiedFiles | CachedFiles:
    if storage.is_local:
        return _local_files(storage, name)
    entries = artifact.file_entries(artifact.read_manifest(storage, name))
    cache = ChunkCache(cache_folder() / "chunks", cache_bytes)
    folder = artifact.copy_name(storage, name)
    return CachedFiles(storage, name, entries, folder, cache, _remedy(storage, name))


def _local_files(storage: Storage, name: str) -> VerifiedFiles:
    entries, folder = artifact.file_entries(artifact.read_manifest(storage, name)), storage.local_path(name)
    assert folder is not None
    return VerifiedFiles(folder, entries, _remedy(storage, name))


def _fit_to_cache(folder: Path, files: NumberFiles) -> None:
    """Warn of a text that is read without groups and does not fit, so that its chunks are fetched again and again."""
    if not isinstance(files, CachedFiles):
        return
    description = json.loads((folder / DATA_FILE).read_bytes())
    train, itemsize = description["splits"]["train"], np.dtype(description["dtype"]).itemsize
    num_bytes = train["tokens"] * itemsize
    if "order" not in train and num_bytes > files.cache.max_bytes:
        files.hold_few()
        log.warning(
            "%s: its %.3g GB are read in an order that needs all of them, and %s keeps %.3g GB, so that parts are "
            "fetched again and again; raise storage.cache_bytes",
            files.storage.url(files.name),
            num_bytes / 1e9,
            files.cache.folder,
            files.cache.max_bytes / 1e9,
        )
