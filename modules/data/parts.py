"""A group's text to parts: tokens that are kept as soon as they are done, each part with a record of what it holds."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import tokenizers
import xxhash

from modules.config import DataConfig
from modules.data.encoding import CannotEncodeError, Encoded, Passage, TextEncoder
from modules.data.file_groups import FileGroup, GroupReader
from modules.data.part_store import Note, PartStore
from modules.data.pieces import BATCH_BYTES, Assigned, batches, joined
from modules.data.quality.sieve import Sieve
from modules.data.rows import TextField
from modules.data.shard_writer import SplitWriter
from modules.data.shards import token_dtype
from modules.data.source_text import Losses
from modules.data.splits import Split
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError

PART_BYTES = 2**24
"""Text of a part; a longer group has several."""
SPLITS: tuple[Split, ...] = ("train", "val")
_FORMAT = 1
"""Must change whenever the same text and settings are cut into other parts, or these are written in another way."""

OnBatch = Callable[[int, int], None]
"""Function that receives the bytes of text and the tokens of each batch."""


class Rules(NamedTuple):
    """What decides the tokens of a text, besides the text."""

    data: DataConfig
    tokenizer: str
    """The note that holds it."""
    counted: Split | None
    """The split in which the bytes of text are counted that each token stands for."""
    val_start: int = 0
    """See `GroupReader`."""


class CountRequest(NamedTuple):
    """A group whose text is counted."""

    group: FileGroup
    data: DataConfig
    parts: PartStore


class GroupRequest(NamedTuple):
    """A group of which the missing parts are made."""

    group: FileGroup
    start: int
    rules: Rules
    parts: PartStore

    def part_name(self, part: int) -> str:
        """Return the name under which a part is kept; another one for other tokens or other cuts."""
        rules = f"{_FORMAT} {PART_BYTES} {BATCH_BYTES} {self.rules.tokenizer} {tokenizers.__version__}"
        return f"{self.group.key}-{part:05d}-{xxhash.xxh3_64_hexdigest(rules.encode())[:8]}"

    def found(self) -> list[Note]:
        """Return the records of the group's first parts, as far as they are kept."""
        records: list[Note] = []
        while not (records and records[-1]["is_last"]):
            record = self.parts.find(self.part_name(len(records)))
            if record is None:
                break
            records.append(record)
        return records


class Batch(NamedTuple):
    """A batch of a part."""

    request: GroupRequest
    part: int
    items: list[Assigned]
    inside: tuple[Split, ...]
    """The splits that are within a document where the part begins."""
    ends_part: bool
    is_last: bool
    """Whether it is the last batch of the group."""
    rows: tuple[int, int, str | None]
    """Rows of the group so far, those left out, and the first of these."""


class Encoding(NamedTuple):
    """A tokenizer and what its tokens are written as."""

    tokenizer: Tokenizer
    dtype: np.dtype

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Encoding":
        return cls(tokenizer, token_dtype(tokenizer.vocab_size))


def part_batches(
    request: GroupRequest, tokenizer: Tokenizer, num_done: int, sieve: Sieve | None = None
) -> Iterator[tuple[list[Passage], Batch]]:
    """Yield the batches of a group, without those of its first `num_done` parts.

    Raises:
        InputError: The text cannot be used, or there is none.
    """
    rules = request.rules
    reader = GroupReader(request.group, rules.data, request.start, rules.val_start, sieve)
    part, size, open_splits = 0, 0, dict.fromkeys(SPLITS, False)
    inside: tuple[Split, ...] = ()
    for items, is_last in _with_last(batches(joined(reader.assigned(), tokenizer))):
        size += sum(item.num_bytes for item in items)
        ends_part = is_last or size >= PART_BYTES
        if part >= num_done:
            field = reader.field
            rows = field.num_rows, field.num_left_out, field.first_left_out
            batch = Batch(request, part, items, inside, ends_part, is_last, rows)
            yield [item.passage(rules.counted) for item in items], batch
        open_splits |= {item.split: not item.piece.ends_document for item in items}
        if ends_part:
            part, size = part + 1, 0
            inside = tuple(split for split in SPLITS if open_splits[split])
    if part == 0:
        raise no_text(reader.field)


def _with_last(items: Iterable[list[Assigned]]) -> Iterator[tuple[list[Assigned], bool]]:
    """Yield each batch, and whether it is the last one."""
    before = None
    for item in items:
        if before is not None:
            yield before, False
        before = item
    if before is not None:
        yield before, True


def no_text(field: TextField) -> InputError:
    """Return the error to raise for a text of no documents."""
    return InputError("data: it holds no text" + (f"; {field.left_out_line()}" if field.num_left_out else ""))


def kept_parts(
    encoded: Iterable[tuple[Encoded, Batch]], encoding: Encoding, on_batch: OnBatch = lambda *_: None
) -> Iterator[Note]:
    """Write what was encoded into parts, and yield the record of each one that is kept.

    Raises:
        CannotEncodeError: The tokenizer loses some text and has no unknown token.
    """
    writer: _PartWriter | None = None
    try:
        for result, batch in encoded:
            writer = writer or _PartWriter(batch, encoding)
            on_batch(*writer.add(result, batch.items))
            if batch.ends_part:
                yield writer.keep(batch)
                writer = None
    finally:
        if writer is not None:
            writer.discard()


class _PartWriter:
    """A part being written."""

    def __init__(self, batch: Batch, encoding: Encoding):
        tokenizer, request = encoding.tokenizer, batch.request
        self._folder = request.parts.new_folder()
        self._unknown = tokenizer.unknown_token
        self._losses = Losses()
        self._writers = {
            split: SplitWriter(
                self._folder,
                split,
                encoding.dtype,
                tokenizer.end_of_text_id,
                begin_id=tokenizer.begin_id,
                writes_token_bytes=split == request.rules.counted,
                inside_document=split in batch.inside,
            )
            for split in SPLITS
        }

    def add(self, encoded: Encoded, items: list[Assigned]) -> tuple[int, int]:
        """Write what a batch became; return its bytes of text and its tokens."""
        before = self._written()
        self._losses += encoded.losses
        if encoded.losses.num_lost and self._unknown is None:
            raise CannotEncodeError(f"it has no token, and no unknown token, for {encoded.losses.shown()}")
        stops = np.cumsum(encoded.counts).tolist()
        for item, start, stop in zip(items, [0, *stops], stops, strict=False):
            num_bytes = None if encoded.num_bytes is None else encoded.num_bytes[start:stop].astype(np.int64)
            writer = self._writers[item.split]
            piece = item.piece
            writer.add(encoded.tokens[start:stop], item.num_bytes, piece.ends_document, num_bytes, piece.place)
        num_bytes, num_tokens = self._written()
        return num_bytes - before[0], num_tokens - before[1]

    def _written(self) -> tuple[int, int]:
        writers = self._writers.values()
        return sum(writer.num_bytes for writer in writers), sum(writer.num_tokens for writer in writers)

    def keep(self, last: Batch) -> Note:
        for writer in self._writers.values():
            writer.close()
        digests = [writer.digests() for writer in self._writers.values()]
        losses = asdict(self._losses)
        record = {
            "group": last.request.group.number,
            "is_last": last.is_last,
            "name": last.request.part_name(last.part),
            "splits": {split: writer.part_entry() for split, writer in self._writers.items()},
            "rows": list(last.rows),
            "losses": {**losses, "examples": sorted(losses["examples"])},
            "files": {name: digest for found in digests for name, digest in found.items()},
        }
        last.request.parts.keep(self._folder, record["name"], record)
        return record

    def discard(self) -> None:
        for writer in self._writers.values():
            with closing(writer):
                pass
        shutil.rmtree(self._folder, ignore_errors=True)


class PartMaker:
    """Counts and makes what it is asked for, in this process; it keeps the tokenizer from one request to the next."""

    def __init__(self) -> None:
        self._name = ""
        self._encoding: Encoding | None = None
        self._encoder: TextEncoder | None = None

    def __call__(self, request: CountRequest | GroupRequest) -> Any:
        """Return the bytes of a group's text, or the records of all its parts.

        Raises:
            InputError: The text cannot be used.
        """
        if isinstance(request, CountRequest):
            return counted(request)
        encoding, encoder = self._loaded(request)
        records = request.found()
        if not (records and records[-1]["is_last"]):
            found = part_batches(request, encoding.tokenizer, len(records))
            records += kept_parts(((encoder.encode(passages), batch) for passages, batch in found), encoding)
        return records

    def _loaded(self, request: GroupRequest) -> tuple[Encoding, TextEncoder]:
        name = request.rules.tokenizer
        if self._encoding is None or self._encoder is None or name != self._name:
            tokenizer = noted_tokenizer(request.parts, name)
            assert tokenizer is not None, "noted before anything is asked for"
            self._encoding, self._name = Encoding.of(tokenizer), name
            self._encoder = TextEncoder(tokenizer.serialised(), self._encoding.dtype)
        return self._encoding, self._encoder


def counted(request: CountRequest) -> int:
    """Return the bytes of a group's text, up to `data.max_bytes`; they are counted once."""
    name = f"{request.group.key}-bytes"
    note = request.parts.note(name)
    if note is None:
        note = {"num_bytes": GroupReader(request.group, request.data).count()}
        request.parts.write_note(name, note)
    return note["num_bytes"]


def note_tokenizer(parts: PartStore, tokenizer: Tokenizer) -> str:
    """Note a tokenizer, and return the name of the note."""
    serialised = tokenizer.serialised()
    names = {"end_token": tokenizer.end_token, "mask_token": tokenizer.mask_token}
    name = f"tokenizer-{xxhash.xxh3_64_hexdigest(f'{names} {serialised}'.encode())}"
    if parts.note(name) is None:
        parts.write_note(name, {"serialised": serialised, **names})
    return name


def noted_tokenizer(parts: PartStore, name: str) -> Tokenizer | None:
    """Return a tokenizer from its note; None if there is none."""
    note = parts.note(name)
    return None if note is None else Tokenizer(note["serialised"], note["end_token"], mask_token=note["mask_token"])
