"""Token shards, written once and sequentially, and read through memory maps."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from modules.data.tokenizer import Tokenizer
from modules.errors import InputError

SHARD_TOKENS = 2**27
"""Tokens in a shard file: 256 or 512 MiB."""
DATA_FILE = "data.json"
TOKENIZER_FILE = "tokenizer.json"
BOUNDARY_DTYPE = np.dtype("<i8")


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smaller of uint16 and uint32 (little endian) that holds every token id."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class SplitWriter:
    """Writer of one split: shards of tokens, and the start of each document."""

    def __init__(
        self, folder: Path, split: str, dtype: np.dtype, end_of_text_id: int, shard_tokens: int = SHARD_TOKENS
    ):
        self._folder = folder
        self._split = split
        self._end_of_text = np.array([end_of_text_id], dtype=dtype)
        self._shard_tokens = shard_tokens
        self._shards: list[_File] = []
        self._starts = _File(folder / f"{split}_document_starts.bin")
        self._inside_document = False
        self.num_documents = 0
        self.num_tokens = 0
        self.num_bytes = 0

    def add(self, tokens: np.ndarray, num_bytes: int, ends_document: bool) -> None:
        """Append a piece of a document, and the end-of-text token after its last piece.

        Args:
            tokens: [n] of the shards' dtype.
            num_bytes: UTF-8 bytes of the text that the tokens encode.
            ends_document: Whether this piece is the document's last.
        """
        if not self._inside_document:
            self._starts.write(np.array([self.num_tokens], dtype=BOUNDARY_DTYPE).tobytes())
            self.num_documents += 1
        self._write(tokens)
        if ends_document:
            self._write(self._end_of_text)
        self._inside_document = not ends_document
        self.num_bytes += num_bytes

    def _write(self, tokens: np.ndarray) -> None:
        while len(tokens):
            room = -self.num_tokens % self._shard_tokens
            if room == 0:
                self._next_shard()
                room = self._shard_tokens
            self._shards[-1].write(tokens[:room].tobytes())
            self.num_tokens += min(room, len(tokens))
            tokens = tokens[room:]

    def _next_shard(self) -> None:
        if self._shards:
            self._shards[-1].close()
        self._shards.append(_File(self._folder / f"{self._split}_{len(self._shards):05d}.bin"))

    def close(self) -> None:
        """Close the files."""
        for file in (*self._shards, self._starts):
            file.close()

    def description(self) -> dict[str, Any]:
        """Return the entry of the split in data.json."""
        return {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "document_starts": self._starts.entry(),
            "shards": [shard.entry() for shard in self._shards],
        }


class _File:
    """A file being written, with the digest of its content."""

    def __init__(self, path: Path):
        self._path = path
        self._stream = path.open("wb")
        self._digest = xxhash.xxh3_128()

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)

    def close(self) -> None:
        self._stream.close()

    def entry(self) -> dict[str, str]:
        return {"name": self._path.name, "xxh3_128": self._digest.hexdigest()}


class TokenStream:
    """One split as a single array of tokens, memory-mapped."""

    def __init__(self, shards: list[np.ndarray], document_starts: np.ndarray):
        """Join the arrays that `TokenData.open` maps.

        Args:
            shards: Tokens; all shards have the same length except the last.
            document_starts: int64 [documents], the position of each document's first token, ascending.
        """
        self._shards = shards
        self._shard_tokens = len(shards[0]) if shards else 1
        self._num_tokens = sum(map(len, shards))
        self.document_starts = document_starts

    def __len__(self) -> int:
        return self._num_tokens

    def fill(self, starts: np.ndarray, length: int, out: np.ndarray) -> None:
        """Copy a window of tokens to each row of `out`, directly from the memory map.

        Args:
            starts: int64 [n], each at most len(self) - length.
            length: Tokens in a window.
            out: [n, length] of any integer dtype that holds the tokens.
        """
        if len(self._shards) == 1:
            tokens = self._shards[0]
            for row, start in enumerate(starts.tolist()):
                out[row] = tokens[start : start + length]
            return
        for row, start in enumerate(starts.tolist()):
            self._fill_row(start, out[row, :length])

    def _fill_row(self, start: int, row: np.ndarray) -> None:
        while len(row):
            shard, offset = divmod(start, self._shard_tokens)
            part = self._shards[shard][offset : offset + len(row)]
            row[: len(part)] = part
            start, row = start + len(part), row[len(part) :]

    def document_ids(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the number of each token's document, counted from 0 within each window.

        Args:
            starts: int64 [n], the windows' first positions.
            length: Tokens in a window.

        Returns:
            int32 [n, length].
        """
        ids = np.zeros((len(starts), length), dtype=np.int32)
        first = np.searchsorted(self.document_starts, starts, side="right")
        stop = np.searchsorted(self.document_starts, starts + length, side="left")
        for row, start in enumerate(starts.tolist()):
            ids[row, self.document_starts[first[row] : stop[row]] - start] = 1
        return np.cumsum(ids, axis=1, dtype=np.int32)


@dataclass(frozen=True)
class TokenData:
    """A prepared data set."""

    train: TokenStream
    val: TokenStream
    """Empty if nothing was held out."""
    tokenizer: Tokenizer
    fingerprint: str
    """Digest of data.json, which holds the digest of every other file, so it changes with any token."""
    num_bytes: dict[str, int]
    """UTF-8 bytes of text in each split."""

    @classmethod
    def open(cls, path: Path) -> "TokenData":
        """Open the folder that `prepare_tokens` wrote by memory maps; the caller has verified its content."""
        content = (path / DATA_FILE).read_bytes()
        description = json.loads(content)
        splits = description["splits"]
        dtype = np.dtype(description["dtype"])
        return cls(
            train=_open_split(path, splits["train"], dtype),
            val=_open_split(path, splits["val"], dtype),
            tokenizer=Tokenizer.load(path / TOKENIZER_FILE),
            fingerprint=xxhash.xxh3_128_hexdigest(content),
            num_bytes={name: split["bytes"] for name, split in splits.items()},
        )


def check_length(num_tokens: int, sequence_length: int) -> None:
    """Refuse text that is too short for one sample.

    Raises:
        InputError: The text has fewer tokens than a sequence and the one token after it.
    """
    if num_tokens <= sequence_length:
        raise InputError(
            f"training.sequence_length={sequence_length}: the data has {num_tokens} tokens, and one sample takes "
            f"{sequence_length + 1}; use more text, a shorter sequence or another data.val_fraction"
        )


def _open_split(path: Path, split: dict[str, Any], dtype: np.dtype) -> TokenStream:
    shards = [_map(path / shard["name"], dtype) for shard in split["shards"]]
    return TokenStream(shards, _map(path / split["document_starts"]["name"], BOUNDARY_DTYPE))


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    # viewed as a plain array, because slicing np.memmap itself costs microseconds of bookkeeping
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
