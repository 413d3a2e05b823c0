"""Text to token shards, streamed throughout; the output is the same for every number of processes."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from modules.config import DataConfig, TokenizerConfig
from modules.cores import num_cores
from modules.data.documents import Piece, read_documents
from modules.data.encoder_pool import EncoderPool
from modules.data.encoding import CannotEncodeError, Passage
from modules.data.hub import read_hub_dataset
from modules.data.joints import Joint, Joints
from modules.data.quality.findings import told
from modules.data.quality.sieve import NO_OTHERS, Others, Sieve, is_on
from modules.data.rows import TextField
from modules.data.shard_writer import SplitWriter
from modules.data.shards import DATA_FILE, TOKENIZER_FILE, token_dtype
from modules.data.source_files import SourceFile, check_formats
from modules.data.source_text import Losses
from modules.data.splits import Split, is_held_out
from modules.data.tokenizer import END_OF_TEXT, Tokenizer, build_tokenizer
from modules.data.trained_tokenizers import take_bytes
from modules.errors import InputError

log = logging.getLogger(__name__)
BATCH_BYTES = 2**20
"""Bytes of text that a tokenising process gets at a time, which take it a fifth of a second."""
LONGEST_WHOLE_CHARS = 2**18
"""Up to this length, text in which no place for a cut is found stays whole; bounds memory."""

OnProgress = Callable[[int, int], None]
"""Function that receives the bytes of text and the tokens done so far."""


class Prepared(NamedTuple):
    """What became of a text."""

    notes: list[str]
    """Lines for the user on what was left out or replaced, and what of the text the tokens do not give back."""
    filtered: dict[str, Any] | None
    """Counts and examples of what was left out or replaced; None if nothing was to be."""


class _Assigned(NamedTuple):
    """A piece, its size in UTF-8 bytes, and the split that it belongs to."""

    piece: Piece
    num_bytes: int
    split: Split
    before: Joint = Joint(0)
    """Where it follows another piece of its document, if the tokenizer needs to know."""
    after: Joint = Joint(0)
    """Where another piece follows it."""

    def passage(self, counted: Split | None) -> Passage:
        """Return what is encoded; the bytes of each token are counted in the split `counted`."""
        before, after = self.before, self.after
        return Passage(
            self.piece.text,
            before.lead,
            before.num_lead_tokens,
            after.trail,
            after.num_trail_tokens,
            counts_bytes=self.split == counted,
        )


def prepare_tokens(
    files: Sequence[SourceFile],
    data: DataConfig,
    tokenizer: TokenizerConfig,
    tokenizer_file: bytes | None,
    folder: Path,
    progress: OnProgress,
    others: Others = NO_OTHERS,
) -> Prepared:
    """Write token shards, document boundaries, tokenizer.json and data.json into `folder`.

    The output depends on the text and the configuration alone, not on the number of processes or the machine.

    Args:
        files: Files to read, in this order; empty for `data.source=huggingface`.
        data: How to read them and what is held out.
        tokenizer: Which tokenizer; it learns from the training split alone.
        tokenizer_file: Content of the tokenizer.json of `kind=file`.
        folder: Empty local folder. After an error it holds partial output that the caller must remove.
        progress: Called after each batch with the UTF-8 bytes of text and the tokens written so far; before that, with
            the bytes that filters have looked at.
        others: The files of texts that `data.deduplicate` and `data.decontaminate` name.

    Raises:
        InputError: A file cannot be used, one split would be empty, or the tokenizer cannot encode or loses some text.
    """
    check_formats(files)
    with _pieces(files, data, others, folder, lambda num_bytes: progress(num_bytes, 0)) as (pieces, filtered):
        notes = _write(pieces, data, tokenizer, tokenizer_file, folder, progress)
    return Prepared([*(told(filtered) if filtered else ()), *notes], filtered)


def preview(files: Sequence[SourceFile], data: DataConfig, others: Others) -> Prepared:
    """Return what `prepare_tokens` would tell of the documents, without making or writing anything of them.

    Raises:
        InputError: As `prepare_tokens`.
    """
    check_formats(files)
    with tempfile.TemporaryDirectory() as folder:
        sieve = Sieve(data, others, _PieceSource(files, data).whole, Path(folder))
        filtered = sieve.scan(lambda _: None)
    return Prepared(told(filtered), filtered)


@contextmanager
def _pieces(
    files: Sequence[SourceFile], data: DataConfig, others: Others, folder: Path, progress: Callable[[int], None]
) -> Iterator[tuple["_PieceSource", dict[str, Any] | None]]:
    """Yield the pieces that are learned, and what was found if anything is to be left out or replaced."""
    pieces = _PieceSource(files, data)
    if not is_on(data):
        yield pieces, None
        return
    with tempfile.TemporaryDirectory(prefix=".filters-", dir=folder) as inside:
        sieve = Sieve(data, others, pieces.whole, Path(inside))
        filtered = sieve.scan(progress)
        pieces.sieve = sieve
        yield pieces, filtered


def _write(
    pieces: "_PieceSource",
    data: DataConfig,
    tokenizer: TokenizerConfig,
    tokenizer_file: bytes | None,
    folder: Path,
    progress: OnProgress,
) -> list[str]:
    """Write the tokens; return lines for the user on what of the text they do not give back."""
    made = build_tokenizer(tokenizer, pieces.training_texts, tokenizer_file)
    made.save(folder / TOKENIZER_FILE)
    dtype = token_dtype(made.vocab_size)
    counted = _counted_split(data) if made.token_num_bytes() is None else None
    with ExitStack() as stack:
        writers: dict[Split, SplitWriter] = {}
        for split in ("train", "val"):
            writer = SplitWriter(
                folder,
                split,
                dtype,
                made.end_of_text_id,
                begin_id=made.begin_id,
                writes_token_bytes=split == counted,
            )
            writers[split] = stack.enter_context(closing(writer))
        pool = stack.enter_context(EncoderPool(folder / TOKENIZER_FILE, dtype, data.num_processes or num_cores()))
        try:
            losses = _write_tokens(pool, _batches(_joined(pieces.assigned(), made), counted), writers, progress, made)
        except CannotEncodeError as error:
            raise InputError(
                f"tokenizer.path={tokenizer.path}: it cannot encode the text ({error}); use a tokenizer that can"
            ) from error
    _check_splits(data, writers, pieces.field)
    if pieces.field.num_left_out:
        log.warning("data: %s", pieces.field.left_out_line())
    descriptions = {split: writer.description() for split, writer in writers.items()}
    _write_description(folder, made, tokenizer.mask_token, dtype, descriptions, pieces.field.num_left_out)
    return losses.told(made.unknown_token)


def training_texts(files: Sequence[SourceFile], data: DataConfig, others: Others = NO_OTHERS) -> Iterator[str]:
    """Yield the text of the training split, in pieces, as `prepare_tokens` reads it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _pieces(files, data, others, Path(folder), lambda _: None) as (pieces, _),
    ):
        yield from pieces.training_texts()


def _counted_split(data: DataConfig) -> Split:
    """Return the split that validation and evaluation read, in which the bytes of text are counted."""
    return "val" if data.val_fraction > 0 else "train"


def _write_tokens(
    pool: EncoderPool,
    batches: Iterable[tuple[list[Passage], list[_Assigned]]],
    writers: dict[Split, SplitWriter],
    progress: OnProgress,
    tokenizer: Tokenizer,
) -> Losses:
    losses, unknown = Losses(), tokenizer.unknown_token
    for encoded, pieces in pool.encode(batches):
        losses += encoded.losses
        if losses.num_lost and unknown is None:
            raise CannotEncodeError(f"it has no token, and no unknown token, for {losses.shown()}")
        stops = np.cumsum(encoded.counts).tolist()
        for item, start, stop in zip(pieces, [0, *stops], stops, strict=False):
            num_bytes = None if encoded.num_bytes is None else encoded.num_bytes[start:stop].astype(np.int64)
            writer = writers[item.split]
            writer.add(
                encoded.tokens[start:stop], item.num_bytes, item.piece.ends_document, num_bytes, item.piece.place
            )
        done = writers.values()
        progress(sum(writer.num_bytes for writer in done), sum(writer.num_tokens for writer in done))
    return losses


def _joined(assigned: Iterable[_Assigned], tokenizer: Tokenizer) -> Iterator[_Assigned]:
    """Move the cuts between the pieces of a document to where its tokens end, for tokenizers that need it."""
    if tokenizer.joins_at_words:
        yield from assigned
        return
    joints, last = Joints(tokenizer.serialised()), None
    for item in assigned:
        if last is not None and not last.piece.ends_document and last.split == item.split:
            joint = joints.joint(last.piece.text, item.piece.text)
            both = last.piece.text + item.piece.text
            if joint is None and len(both) <= LONGEST_WHOLE_CHARS:
                last = _with_text(item, both)._replace(before=last.before)
                continue
            joint = joint or Joint(len(last.piece.text))
            last = _with_text(last, both[: joint.place])._replace(after=joint)
            item = _with_text(item, both[joint.place :])._replace(before=joint)
        if last is not None:
            yield last
        last = item
    if last is not None:
        yield last


def _with_text(item: _Assigned, text: str) -> _Assigned:
    return item._replace(piece=item.piece._replace(text=text), num_bytes=len(text.encode()))


def _batches(assigned: Iterable[_Assigned], counted: Split | None) -> Iterator[tuple[list[Passage], list[_Assigned]]]:
    batch: list[_Assigned] = []
    size = 0
    for item in assigned:
        batch.append(item)
        size += item.num_bytes
        if size >= BATCH_BYTES:
            yield [item.passage(counted) for item in batch], batch
            batch, size = [], 0
    if batch:
        yield [item.passage(counted) for item in batch], batch


class _PieceSource:
    """The text in pieces, each with its split; every call reads the text from the start."""

    def __init__(self, files: Sequence[SourceFile], data: DataConfig):
        self._files = files
        self._data = data
        self._val_start: int | None = None
        self.field = TextField(data)
        """Counts the rows of the latest reading."""
        self.sieve: Sieve | None = None
        """What leaves documents out and changes them, once it has looked at all."""

    def training_texts(self) -> Iterator[str]:
        """Return the text of the training split alone."""
        return (item.piece.text for item in self.assigned() if item.split == "train")

    def assigned(self) -> Iterator[_Assigned]:
        """Return every piece with its split."""
        pieces = self._sized()
        if self._data.val_fraction == 0:
            return (_Assigned(piece, num_bytes, "train") for piece, num_bytes in pieces)
        if self._data.split == "document":
            return _by_document(pieces, self._data.val_fraction)
        return _by_position(pieces, self._find_val_start())

    def _find_val_start(self) -> int:
        """Return the byte at which the held-out text starts, found by reading everything once."""
        if self._val_start is None:
            total = sum(num_bytes for _, num_bytes in self._sized())
            self._val_start = int(total * (1 - self._data.val_fraction))
        return self._val_start

    def whole(self) -> Iterator[Piece]:
        """Return every piece of the text as it was found, up to `data.max_bytes`."""
        return (piece for piece, _ in _first_bytes(self._read(), self._data.max_bytes))

    def _sized(self) -> Iterator[tuple[Piece, int]]:
        """Return every piece that is learned, with its bytes."""
        if self.sieve is None:
            return _first_bytes(self._read(), self._data.max_bytes)
        return ((piece, len(piece.text.encode())) for piece in self.sieve.pieces())

    def _read(self) -> Iterator[Piece]:
        data = self._data
        self.field = TextField(data)
        if data.source == "huggingface":
            yield from read_hub_dataset(data.path[0], data.revision, data.subset, data.hub_split, self.field)
        for number, file in enumerate(self._files):
            yield from read_documents(file, data, self.field, number)


def _first_bytes(pieces: Iterator[Piece], max_bytes: int | None) -> Iterator[tuple[Piece, int]]:
    remaining = max_bytes
    for piece in pieces:
        num_bytes = len(piece.text.encode())
        if remaining is not None and num_bytes >= remaining:
            text = take_bytes(piece.text, remaining)
            yield Piece(text, True, piece.place), len(text.encode())
            return
        yield piece, num_bytes
        remaining = None if remaining is None else remaining - num_bytes


def _by_document(pieces: Iterator[tuple[Piece, int]], val_fraction: float) -> Iterator[_Assigned]:
    """Split by the hash of a document's first piece: equal documents stay together, and none is held as a whole."""
    split: Split | None = None
    for piece, num_bytes in pieces:
        if split is None:
            split = "val" if is_held_out(piece.text.encode(), val_fraction) else "train"
        yield _Assigned(piece, num_bytes, split)
        split = None if piece.ends_document else split


def _by_position(pieces: Iterator[tuple[Piece, int]], val_start: int) -> Iterator[_Assigned]:
    position = 0
    for piece, num_bytes in pieces:
        if position < val_start < position + num_bytes:
            head = take_bytes(piece.text, val_start - position)
            tail = piece.text[len(head) :]
            yield _Assigned(Piece(head, True, piece.place), len(head.encode()), "train")
            yield _Assigned(Piece(tail, piece.ends_document, piece.place), len(tail.encode()), "val")
        else:
            yield _Assigned(piece, num_bytes, "train" if position < val_start else "val")
        position += num_bytes


def _check_splits(data: DataConfig, writers: dict[Split, SplitWriter], field: TextField) -> None:
    num_documents = sum(writer.num_documents for writer in writers.values())
    if num_documents == 0:
        raise InputError("data: it holds no text" + (f"; {field.left_out_line()}" if field.num_left_out else ""))
    empty = [split for split, writer in writers.items() if writer.num_tokens == 0]
    if empty and data.val_fraction > 0:
        remedy = "data.split=position, which cuts inside a document, " if data.split == "document" else ""
        raise InputError(
            f"data.val_fraction={data.val_fraction:g}: the {empty[0]} split is empty (data.split={data.split}, "
            f"{num_documents} documents); set {remedy}another data.val_fraction, or 0 to hold out none"
        )


def _write_description(
    folder: Path,
    tokenizer: Tokenizer,
    mask_token: str | None,
    dtype: np.dtype,
    splits: Mapping[str, Any],
    num_left_out: int,
) -> None:
    description: dict[str, Any] = {
        "format": 1,
        "dtype": dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_xxh3_128": xxhash.xxh3_128_hexdigest((folder / TOKENIZER_FILE).read_bytes()),
        "splits": splits,
    }
    if tokenizer.end_token != END_OF_TEXT:
        description["end_token"] = tokenizer.end_token
    if mask_token is not None:
        description["mask_token"] = mask_token
    if num_left_out:
        description["rows_without_text"] = num_left_out
    (folder / DATA_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
