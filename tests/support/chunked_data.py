"""Prepared text, made directly of numbers, whose small files have many chunks; tests see which of them are read."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from modules.config import TokenizerConfig
from modules.data import digested_file
from modules.data.shard_writer import SplitWriter
from modules.data.shards import DATA_FILE, TOKENIZER_FILE
from modules.data.tokenizer import build_tokenizer
from orchestrator.artifacts import artifact, chunk_record
from orchestrator.artifacts.staging import staging_folder
from orchestrator.storage.store import Storage

CHUNK_BYTES = 64
NAME = "data/files-0123456789abcdef"
SETTINGS = TokenizerConfig(kind="byte")


@contextmanager
def small_chunks() -> Iterator[None]:
    """Divide what is written and read within into small chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digested_file, "CHUNK_BYTES", CHUNK_BYTES)
        patch.setattr(chunk_record, "UNRECORDED_BYTES", CHUNK_BYTES)
        yield


def text_of(num_tokens: int, seed: int = 0) -> np.ndarray:
    """Return tokens that are not the end of a text."""
    return np.random.default_rng(seed).integers(0, 250, num_tokens, dtype="<u2")


def write_text(folder: Path, tokens: np.ndarray, document_tokens: int = 10, shard_tokens: int = 200) -> None:
    """Write what `prepare_tokens` writes."""
    tokenizer = build_tokenizer(SETTINGS, lambda: iter(()), None)
    tokenizer.save(folder / TOKENIZER_FILE)
    splits = {}
    for split, of_split in (("train", tokens), ("val", tokens[:500])):
        writer = SplitWriter(
            folder,
            split,
            np.dtype("<u2"),
            tokenizer.end_of_text_id,
            writes_token_bytes=split == "val",
            shard_tokens=shard_tokens,
        )
        for start in range(0, len(of_split), document_tokens):
            document = of_split[start : start + document_tokens]
            writer.add(document, len(document), True, np.ones(len(document), np.int64))
        writer.close()
        splits[split] = writer.description()
    description = {"format": 1, "dtype": "<u2", "vocab_size": tokenizer.vocab_size, "splits": splits}
    (folder / DATA_FILE).write_text(json.dumps(description))


def publish_text(
    storage: Storage, tokens: np.ndarray, with_digests: bool = True, name: str = NAME, shard_tokens: int = 200
) -> None:
    """Publish it; without digests as an earlier version has."""
    with staging_folder(storage, name) as folder:
        write_text(folder, tokens, shard_tokens=shard_tokens)
        for path in [] if with_digests else [*folder.glob("*.digests")]:
            path.unlink()
        artifact.publish(storage, folder, name, {"kind": "data"})


_noted: list[list[str]] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _noted:
        _noted[-1].append(str(arguments[0]))


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Yield the paths of the files that this process opens within."""
    if _note not in _hooks:
        _hooks.append(_note)
        sys.addaudithook(_note)  # stays for the life of the process
    found: list[str] = []
    _noted.append(found)
    try:
        yield found
    finally:
        _noted.remove(found)


_hooks: list[object] = []
