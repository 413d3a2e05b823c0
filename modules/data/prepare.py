"""Text to token shards, streamed throughout; the output is the same for every number of processes."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from modules.config import DataConfig, TokenizerConfig
from modules.cores import num_cores
from modules.data.encoder_pool import EncoderPool
from modules.data.encoding import CannotEncodeError, Passage
from modules.data.file_groups import FileGroup, GroupReader
from modules.data.learned_text import LearnedText, Work, learned_text
from modules.data.part_store import LocalParts, Note, PartStore
from modules.data.parts import (
    SPLITS,
    Batch,
    Encoding,
    GroupRequest,
    Rules,
    kept_parts,
    no_text,
    note_tokenizer,
    part_batches,
)
from modules.data.quality.findings import told
from modules.data.quality.sieve import NO_OTHERS, Others, Sieve
from modules.data.rows import TextField
from modules.data.shard_writer import SplitWriter
from modules.data.shards import DATA_FILE, TOKENIZER_FILE
from modules.data.source_files import SourceFile, check_formats
from modules.data.source_text import Losses
from modules.data.splits import Split
from modules.data.tokenizer import END_OF_TEXT, Tokenizer
from modules.errors import InputError

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
"""Function that receives the bytes of text and the tokens done so far."""
_PARTS = ".parts"


class Prepared(NamedTuple):
    """What became of a text."""

    notes: list[str]
    """Lines for the user on what was left out or replaced, and what of the text the tokens do not give back."""
    filtered: dict[str, Any] | None
    """Counts and examples of what was left out or replaced; None if nothing was to be."""


def prepare_tokens(
    files: Sequence[SourceFile],
    data: DataConfig,
    tokenizer: TokenizerConfig,
    tokenizer_file: bytes | None,
    folder: Path,
    progress: OnProgress,
    others: Others = NO_OTHERS,
    work: Work | None = None,
) -> Prepared:
    """Write token shards, document boundaries, tokenizer.json and data.json into `folder`.

    The output depends on the text and the configuration alone, not on the number of processes or the machine, nor on
    which parts of it an earlier call that was killed has left.

    Args:
        files: Files to read, in this order; empty for `data.source=huggingface`.
        data: How to read them and what is held out.
        tokenizer: Which tokenizer; it learns from the training split alone.
        tokenizer_file: Content of the tokenizer.json of `kind=file`.
        folder: Empty local folder. After an error it holds partial output that the caller must remove.
        progress: Called after each batch with the UTF-8 bytes of text and the tokens written so far; before that, with
            the bytes that filters have looked at.
        others: The files of texts that `data.deduplicate` and `data.decontaminate` name.
        work: Where parts are kept, for this text and these settings alone; None keeps them until this call ends.

    Raises:
        InputError: A file cannot be used, one split would be empty, or the tokenizer cannot encode or loses some text.
    """
    check_formats(files)
    work = work or Work(LocalParts(folder / _PARTS, folder))
    with learned_text(files, data, others, folder, work, lambda num_bytes: progress(num_bytes, 0)) as (text, filtered):
        notes = _write(text, tokenizer, tokenizer_file, folder, progress)
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
    return Prepared([*(told(filtered) if filtered else ()), *notes], filtered)


def preview(files: Sequence[SourceFile], data: DataConfig, others: Others) -> Prepared:
    """Return what `prepare_tokens` would tell of the documents, without making or writing anything of them.

    Raises:
        InputError: As `prepare_tokens`.
    """
    check_formats(files)
    with tempfile.TemporaryDirectory() as folder:
        sieve = Sieve(data, others, GroupReader(FileGroup(0, tuple(files)), data).whole, Path(folder))
        filtered = sieve.scan(lambda _: None)
    return Prepared(told(filtered), filtered)


def training_texts(files: Sequence[SourceFile], data: DataConfig, others: Others = NO_OTHERS) -> Iterator[str]:
    """Yield the text of the training split, in pieces, as `prepare_tokens` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        work = Work(LocalParts(Path(folder) / _PARTS, Path(folder)))
        with learned_text(files, data, others, Path(folder), work, lambda _: None) as (text, _):
            yield from text.training_texts()


def _write(
    text: LearnedText, tokenizer: TokenizerConfig, tokenizer_file: bytes | None, folder: Path, progress: OnProgress
) -> list[str]:
    """Write the tokens; return lines for the user on what of the text they do not give back."""
    made = text.tokenizer(tokenizer, tokenizer_file)
    made.save(folder / TOKENIZER_FILE)
    encoding = Encoding.of(made)
    counted = _counted_split(text.data) if made.token_num_bytes() is None else None
    placed, val_start = text.placed()
    rules = Rules(text.data, note_tokenizer(text.parts, made), counted, val_start)
    requests = [GroupRequest(group, start, rules, text.parts) for group, start in placed]
    if num_done := text.parts.count():
        log.warning("data: goes on with %d parts that are done already, of at least %d", num_done, len(requests))
    try:
        records = _records(text, requests, encoding, folder / TOKENIZER_FILE, _Progress(progress))
    except CannotEncodeError as error:
        raise InputError(
            f"tokenizer.path={tokenizer.path}: it cannot encode the text ({error}); use a tokenizer that can"
        ) from error
    writers = _joined_parts(text.parts, records, encoding, counted, folder)
    field = _all_rows(text.data, records)
    _check_splits(text.data, writers, field)
    if field.num_left_out:
        log.warning("data: %s", field.left_out_line())
    descriptions = {split: writer.description() for split, writer in writers.items()}
    _write_description(folder, encoding, tokenizer.mask_token, descriptions, field.num_left_out)
    return sum((_losses(record) for record in records), Losses()).told(made.unknown_token)


class _Progress:
    """Adds up what is done."""

    def __init__(self, progress: OnProgress):
        self._progress = progress
        self._bytes = self._tokens = 0

    def add(self, num_bytes: int, num_tokens: int) -> None:
        self._bytes, self._tokens = self._bytes + num_bytes, self._tokens + num_tokens
        self._progress(self._bytes, self._tokens)

    def add_parts(self, records: Iterable[Note]) -> None:
        splits = [split for record in records for split in record["splits"].values()]
        self.add(sum(split["bytes"] for split in splits), sum(split["tokens"] for split in splits))


def _records(
    text: LearnedText, requests: list[GroupRequest], encoding: Encoding, tokenizer_path: Path, progress: _Progress
) -> list[Note]:
    """Make the parts that are not there yet; return the records of all, in order."""
    records: list[Note] = []
    if text.crew is not None:
        for found, _ in text.crew.answers((request, None) for request in requests):
            progress.add_parts(found)
            records += found
        return records
    of_group = {request.group.number: request.found() for request in requests}
    for found in filter(None, of_group.values()):
        progress.add_parts(found)
    num_processes = text.data.num_processes or num_cores()
    with EncoderPool(tokenizer_path, encoding.dtype, num_processes) as pool:
        missing = _missing_batches(text, requests, of_group, encoding.tokenizer)
        for record in kept_parts(pool.encode(missing), encoding, progress.add):
            of_group[record["group"]].append(record)
    return [record for found in of_group.values() for record in found]


def _missing_batches(
    text: LearnedText, requests: Iterable[GroupRequest], of_group: Mapping[int, list[Note]], tokenizer: Tokenizer
) -> Iterator[tuple[list[Passage], Batch]]:
    for request in requests:
        found = of_group[request.group.number]
        if not (found and found[-1]["is_last"]):
            yield from part_batches(request, tokenizer, len(found), text.sieve)


def _joined_parts(
    parts: PartStore, records: Iterable[Note], encoding: Encoding, counted: Split | None, folder: Path
) -> dict[Split, SplitWriter]:
    """Write the shards of all parts; return their writers, which are closed."""
    tokenizer = encoding.tokenizer
    with ExitStack() as stack:
        writers: dict[Split, SplitWriter] = {
            split: SplitWriter(
                folder,
                split,
                encoding.dtype,
                tokenizer.end_of_text_id,
                writes_token_bytes=split == counted,
            )
            for split in SPLITS
        }
        for writer in writers.values():
            stack.enter_context(closing(writer))
        for record in records:
            with parts.opened(record["name"]) as place:
                for split, writer in writers.items():
                    writer.append(place, record["splits"][split])
    return writers


def _all_rows(data: DataConfig, records: Iterable[Note]) -> TextField:
    field = TextField(data)
    for record in records:
        if record["is_last"]:
            field.add(*record["rows"])
    return field


def _losses(record: Note) -> Losses:
    return Losses(**{**record["losses"], "examples": frozenset(record["losses"]["examples"])})


def _counted_split(data: DataConfig) -> Split:
    """Return the split that validation and evaluation read, in which the bytes of text are counted."""
    return "val" if data.val_fraction > 0 else "train"


def _check_splits(data: DataConfig, writers: dict[Split, SplitWriter], field: TextField) -> None:
    num_documents = sum(writer.num_documents for writer in writers.values())
    if num_documents == 0:
        raise no_text(field)
    empty = [split for split, writer in writers.items() if writer.num_tokens == 0]
    if empty and data.val_fraction > 0:
        remedy = "data.split=position, which cuts inside a document, " if data.split == "document" else ""
        raise InputError(
            f"data.val_fraction={data.val_fraction:g}: the {empty[0]} split is empty (data.split={data.split}, "
            f"{num_documents} documents); set {remedy}another data.val_fraction, or 0 to hold out none"
        )


def _write_description(
    folder: Path,
    encoding: Encoding,
    mask_token: str | None,
    splits: Mapping[str, Any],
    num_left_out: int,
) -> None:
    tokenizer = encoding.tokenizer
    description: dict[str, Any] = {
        "format": 1,
        "dtype": encoding.dtype.str,
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
