"""Token shards, written once and sequentially."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modules.data.digested_file import DigestedFile
from modules.data.document_rows import NO_PLACE, ROW_DTYPE, Place, rows_name
from modules.data.shards import BOUNDARY_DTYPE, TOKEN_BYTES_DTYPE

SHARD_TOKENS = 2**27
"""Tokens in a shard file: 256 or 512 MiB."""
GROUPED_BYTES = 2**30
"""A split with as many bytes of tokens has its windows ordered by groups, so that it need not be read as a whole."""
BLOCK_BYTES, GROUP_BLOCKS = 2**20, 64
_COPIED_NUMBERS = 2**20


class SplitWriter:
    """Writer of one split: tokens in shards, the start and the place of each document, and the bytes of each token."""

    def __init__(
        self,
        folder: Path,
        split: str,
        dtype: np.dtype,
        end_of_text_id: int,
        *,
        begin_id: int | None = None,
        writes_token_bytes: bool = False,
        shard_tokens: int = SHARD_TOKENS,
        inside_document: bool = False,
    ):
        self._begin = np.array([] if begin_id is None else [begin_id], dtype=dtype)
        self._end_of_text = np.array([end_of_text_id], dtype=dtype)
        self._split = split
        self._tokens = _Shards(folder, split, shard_tokens)
        self._token_bytes = _Shards(folder, f"{split}_token_bytes", shard_tokens) if writes_token_bytes else None
        self._starts = DigestedFile(folder / f"{split}_document_starts.bin")
        self._rows = DigestedFile(folder / rows_name(split))
        self._inside_document = inside_document
        self._owed_bytes = 0
        self.num_documents = 0
        self.num_bytes = 0

    @property
    def num_tokens(self) -> int:
        return self._tokens.length

    def add(
        self,
        tokens: np.ndarray,
        num_bytes: int,
        ends_document: bool,
        token_bytes: np.ndarray | None = None,
        place: Place = NO_PLACE,
    ) -> None:
        """Append a piece of a document, with the token that begins its first piece and the one that ends its last.

        Args:
            tokens: [n] of the shards' dtype.
            num_bytes: UTF-8 bytes of the text that the tokens encode.
            ends_document: Whether this piece is the document's last.
            token_bytes: int64 [n], the bytes that each token stands for; those that none does belong to the next token.
            place: Where the document comes from; that of its first piece is kept.
        """
        if not self._inside_document:
            self._starts.write(np.array([self.num_tokens], dtype=BOUNDARY_DTYPE).tobytes())
            self._rows.write(np.array(place, dtype=ROW_DTYPE).tobytes())
            self.num_documents += 1
            tokens = np.concatenate([self._begin, tokens])
            if token_bytes is not None:
                token_bytes = np.concatenate([np.zeros(len(self._begin), dtype=np.int64), token_bytes])
        tokens = np.concatenate([tokens, self._end_of_text]) if ends_document else tokens
        if self._token_bytes is not None and token_bytes is not None:
            left_over = num_bytes - int(token_bytes.sum())
            self._token_bytes.write(self._written_bytes(token_bytes, left_over, ends_document))
        self._tokens.write(tokens)
        self._inside_document = not ends_document
        self.num_bytes += num_bytes

    def _written_bytes(self, token_bytes: np.ndarray, left_over: int, ends_document: bool) -> np.ndarray:
        """Return numbers that fit the dtype: what exceeds it moves on to the next tokens, so sums stay right."""
        wanted = np.append(token_bytes, left_over) if ends_document else token_bytes.copy()
        if len(wanted) == 0:
            self._owed_bytes += left_over
            return np.empty(0, dtype=TOKEN_BYTES_DTYPE)
        wanted[0] += self._owed_bytes
        sums = np.cumsum(wanted)
        room = np.iinfo(TOKEN_BYTES_DTYPE).max * np.arange(1, len(wanted) + 1)
        written = np.minimum(np.minimum.accumulate(sums - room), 0) + room
        self._owed_bytes = int(sums[-1] - written[-1]) + (0 if ends_document else left_over)
        return np.diff(written, prepend=0).astype(TOKEN_BYTES_DTYPE)

    def append(self, folder: Path, entry: Mapping[str, Any]) -> None:
        """Append what another writer of the split has written to `folder`, and described in `part_entry`."""
        starts = np.fromfile(folder / f"{self._split}_document_starts.bin", dtype=BOUNDARY_DTYPE)
        self._starts.write((starts + self.num_tokens).astype(BOUNDARY_DTYPE).tobytes())
        self._rows.write((folder / rows_name(self._split)).read_bytes())
        for name in entry["shards"]:
            for block in _blocks(folder / name, self._end_of_text.dtype):
                self._tokens.write(block)
        for name in entry["token_bytes"]:
            for block in _blocks(folder / name, TOKEN_BYTES_DTYPE):
                assert self._token_bytes is not None, "both writers were asked for the same"
                self._token_bytes.write(self._written_bytes(block.astype(np.int64), 0, False))
        self._owed_bytes += entry["owed_bytes"]
        self.num_documents += entry["documents"]
        self.num_bytes += entry["bytes"]

    def part_entry(self) -> dict[str, Any]:
        """Return what `append` has to know, once the files are closed."""
        return {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "owed_bytes": self._owed_bytes,
            "shards": [entry["name"] for entry in self._tokens.entries()],
            "token_bytes": [entry["name"] for entry in self._token_bytes.entries()] if self._token_bytes else [],
        }

    def digests(self) -> dict[str, str]:
        """Return the xxh3_128 of each file but those of chunks, by name, once they are closed."""
        shards = [*self._tokens.entries(), *(self._token_bytes.entries() if self._token_bytes else ())]
        return {entry["name"]: entry["xxh3_128"] for entry in (*shards, self._starts.entry(), self._rows.entry())}

    def close(self) -> None:
        """Close the files."""
        for file in (self._tokens, self._token_bytes, self._starts, self._rows):
            if file is not None:
                file.close()

    def description(self) -> dict[str, Any]:
        """Return the entry of the split in data.json."""
        counted = {"token_bytes": self._token_bytes.entries()} if self._token_bytes is not None else {}
        itemsize = self._end_of_text.itemsize
        order = {"block_tokens": BLOCK_BYTES // itemsize, "group_blocks": GROUP_BLOCKS}
        return {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "document_starts": self._starts.entry(),
            "shards": self._tokens.entries(),
            **counted,
            **({"order": order} if self.num_tokens * itemsize >= GROUPED_BYTES else {}),
        }


class _Shards:
    """An array that is written as several files of equal length, and a shorter last one."""

    def __init__(self, folder: Path, name: str, shard_length: int):
        self._folder, self._name, self._shard_length = folder, name, shard_length
        self._files: list[DigestedFile] = []
        self.length = 0

    def write(self, values: np.ndarray) -> None:
        while len(values):
            room = -self.length % self._shard_length
            if room == 0:
                self._next_file()
                room = self._shard_length
            self._files[-1].write(values[:room].tobytes())
            self.length += min(room, len(values))
            values = values[room:]

    def _next_file(self) -> None:
        if self._files:
            self._files[-1].close()
        self._files.append(DigestedFile(self._folder / f"{self._name}_{len(self._files):05d}.bin"))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def entries(self) -> list[dict[str, str]]:
        return [file.entry() for file in self._files]


def _blocks(path: Path, dtype: np.dtype) -> Iterator[np.ndarray]:
    with path.open("rb") as stream:
        while len(block := np.fromfile(stream, dtype=dtype, count=_COPIED_NUMBERS)):
            yield block
