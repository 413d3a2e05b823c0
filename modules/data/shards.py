"""Token shards, read in parts, wherever they are."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from modules.data.group_order import GroupOrder, GroupSettings
from modules.data.number_files import MappedFiles, NumberFiles, Numbers
from modules.data.sampler import WindowOrder
from modules.data.tokenizer import END_OF_TEXT, Tokenizer
from modules.errors import InputError

DATA_FILE = "data.json"
TOKENIZER_FILE = "tokenizer.json"
BOUNDARY_DTYPE = np.dtype("<i8")
TOKEN_BYTES_DTYPE = np.dtype("<u2")
"""What the bytes of text for which each token stands are written as."""
_BLOCK_TOKENS = 2**22


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smaller of uint16 and uint32 (little endian) that holds every token id."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclass(frozen=True)
class SpeltBytes:
    """What tokens spell, for data in which nobody counted the bytes of text: right if the whole split agrees."""

    table: np.ndarray
    """[V], UTF-8 bytes that each token spells."""
    total: int
    """UTF-8 bytes of the split's text."""

    def fits(self, shards: Sequence[Numbers]) -> bool:
        """Return whether all tokens together spell as many bytes as the text has."""
        blocks = (shard[i : i + _BLOCK_TOKENS] for shard in shards for i in range(0, len(shard), _BLOCK_TOKENS))
        return sum(int(self.table[block].sum(dtype=np.int64)) for block in blocks) == self.total


class TokenStream:
    """One split as a single array of tokens, of which only what is asked for is read."""

    def __init__(
        self,
        shards: Sequence[Numbers],
        document_starts: Numbers,
        token_bytes: "np.ndarray | SpeltBytes | TokenStream | None" = None,
        groups: GroupSettings | None = None,
        files: NumberFiles | None = None,
    ):
        """Join the arrays that `TokenData.open` finds.

        Args:
            shards: Tokens; all shards have the same length except the last.
            document_starts: int64 [documents], the position of each document's first token, ascending.
            token_bytes: UTF-8 bytes of text for which each token stands: an array [V] if it stands for the same ones
                everywhere, else a stream of the same length; None if they are not known.
            groups: How its windows are grouped; None mixes those of the whole split.
            files: What is told which parts are read next; None for arrays in memory.
        """
        self._token_bytes = token_bytes
        self._groups, self._files = groups, files
        self._shards = shards
        self._shard_tokens = len(shards[0]) if shards else 1
        self._num_tokens = sum(map(len, shards))
        self.document_starts = document_starts

    def __len__(self) -> int:
        return self._num_tokens

    def fill(self, starts: np.ndarray, length: int, out: np.ndarray) -> None:
        """Copy a window of tokens to each row of `out`, directly from where they are mapped.

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

    def plan(self, starts: np.ndarray, length: int, with_bytes: bool = False) -> None:
        """Say which windows will be read next, in order, so that what lies in a store is fetched beforehand.

        Args:
            starts: int64 [n], each at most len(self) - length; they take the place of those of the call before.
            length: Tokens in a window.
            with_bytes: Whether `num_bytes` is asked about them as well.
        """
        if self._files is None:
            return
        parts = self._parts(starts, length)
        if with_bytes and isinstance(self._token_bytes, TokenStream):
            parts = chain.from_iterable(zip(parts, self._token_bytes._parts(starts, length), strict=True))
        self._files.plan(self, parts)

    def _parts(self, starts: np.ndarray, length: int) -> Iterator[tuple[Numbers, int, int]]:
        for start in starts.tolist():
            stop = start + length
            while start < stop:
                shard, offset = divmod(start, self._shard_tokens)
                end = min(offset + stop - start, self._shard_tokens)
                yield self._shards[shard], offset, end
                start += end - offset

    def order(self, sequence_length: int, seed: int) -> WindowOrder | GroupOrder:
        """Return which window each training sample is."""
        if self._groups is None:
            return WindowOrder(len(self), sequence_length, seed)
        return GroupOrder(len(self), sequence_length, seed, self._groups)

    def num_bytes(self, starts: np.ndarray, length: int) -> int | None:
        """Return the UTF-8 bytes of text for which the tokens of all windows stand, or None if they are not known.

        Args:
            starts: int64 [n], each at most len(self) - length.
            length: Tokens in a window.
        """
        if isinstance(self._token_bytes, SpeltBytes):
            self._token_bytes = self._token_bytes.table if self._token_bytes.fits(self._shards) else None
        if self._token_bytes is None:
            return None
        numbers = np.empty((len(starts), length), dtype=np.int64)
        if isinstance(self._token_bytes, np.ndarray):
            self.fill(starts, length, numbers)
            return int(self._token_bytes[numbers].sum())
        self._token_bytes.fill(starts, length, numbers)
        return int(numbers.sum())

    def documents(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """Return the documents in a window: the number of each in the split, and where it begins and ends there.

        One that begins before the window begins at a negative place, and the last one ends with the window.

        Args:
            start: The window's first position.
            length: Tokens in it.
        """
        first = max(0, int(self.document_starts.searchsorted(start, side="right")) - 1)
        last = int(self.document_starts.searchsorted(start + length, side="left"))
        begins = [begin - start for begin in self.document_starts[first:last].tolist()]
        return [*zip(range(first, last), begins, [*begins[1:], length], strict=True)]

    def document_ids(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return the number of each token's document, counted from 0 within each window.

        Args:
            starts: int64 [n], the windows' first positions.
            length: Tokens in a window.

        Returns:
            int32 [n, length].
        """
        ids = np.zeros((len(starts), length), dtype=np.int32)
        first = self.document_starts.searchsorted(starts, side="right")
        stop = self.document_starts.searchsorted(starts + length, side="left")
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
    def open(cls, path: Path, files: NumberFiles | None = None) -> "TokenData":
        """Open what `prepare_tokens` wrote.

        Args:
            path: Folder with data.json and the tokenizer, which the caller has verified.
            files: The other files; None for those in the same folder, which the caller has verified, too.
        """
        files = files or MappedFiles(path)
        content = (path / DATA_FILE).read_bytes()
        description = json.loads(content)
        splits = description["splits"]
        dtype = np.dtype(description["dtype"])
        tokenizer = open_tokenizer(path)
        return cls(
            train=_open_split(files, splits["train"], dtype, tokenizer),
            val=_open_split(files, splits["val"], dtype, tokenizer),
            tokenizer=tokenizer,
            fingerprint=xxhash.xxh3_128_hexdigest(content),
            num_bytes={name: split["bytes"] for name, split in splits.items()},
        )


def open_tokenizer(path: Path) -> Tokenizer:
    """Open the tokenizer of the folder that `prepare_tokens` wrote; no token shard is needed for it."""
    description = json.loads((path / DATA_FILE).read_bytes())
    names = description.get("end_token", END_OF_TEXT), description.get("mask_token")
    return Tokenizer.load(path / TOKENIZER_FILE, *names)


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


def _open_split(files: NumberFiles, split: dict[str, Any], dtype: np.dtype, tokenizer: Tokenizer) -> TokenStream:
    starts = files.open(split["document_starts"]["name"], BOUNDARY_DTYPE)
    groups = GroupSettings(**split["order"]) if "order" in split else None

    def stream(shards: list[dict[str, str]], of: np.dtype, token_bytes: Any = None) -> TokenStream:
        opened = [files.open(shard["name"], of) for shard in shards]
        return TokenStream(opened, starts, token_bytes, groups, files)

    if "token_bytes" in split:
        return stream(split["shards"], dtype, stream(split["token_bytes"], TOKEN_BYTES_DTYPE))
    table = tokenizer.token_num_bytes()
    spelt = SpeltBytes(tokenizer.spelt_bytes(), split["bytes"]) if table is None else table
    return stream(split["shards"], dtype, spelt)
