"""Text files as a stream of documents. Memory is bounded: files and long plain texts are never read as a whole."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO, NamedTuple, Protocol

from modules.config import DataConfig
from modules.data.compression import COMPRESSED_ENDINGS, DAMAGE, decompressed
from modules.data.csv_rows import csv_texts
from modules.data.json_rows import json_texts, jsonl_texts
from modules.data.lines import decoded
from modules.data.parquet_rows import parquet_texts
from modules.data.rows import TextField
from modules.errors import InputError

PIECE_CHARS = 2**14
"""Largest piece of a document in characters; `tokenizers` is fastest with pieces of this size (measured)."""

PLAIN_TEXT = (
    "txt text md markdown rst tex log html htm xml css py pyi c h cc cpp hpp cs java js ts go rs rb php sh sql toml "
    "yaml yml ini cfg r jl lua pl scala swift kt"
)
PLAIN_TEXT_ENDINGS = frozenset(f".{ending}" for ending in PLAIN_TEXT.split())
_ROWS: dict[str, Callable[[BinaryIO, str, TextField], Iterator[str]]] = {
    ".jsonl": jsonl_texts,
    ".json": json_texts,
    ".csv": partial(csv_texts, delimiter=","),
    ".tsv": partial(csv_texts, delimiter="\t"),
    ".parquet": parquet_texts,
}
_BEGINNINGS = {
    b"\x1f\x8b": "gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "zstandard (.zst)",
    b"PAR1": "Parquet (.parquet)",
    b"PK\x03\x04": "a ZIP archive",
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
}
"""How files of other formats begin."""


class SourceFile(Protocol):
    """A text file on any storage; picklable."""

    @property
    def name(self) -> str:
        """Name shown in messages; its ending decides how the file is read."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of the stored file."""
        ...

    def open(self) -> BinaryIO:
        """Return a stream of the raw bytes, seekable for .parquet."""
        ...


class Piece(NamedTuple):
    """A document or a part of a long one; parts follow each other, and only the last has `ends_document`."""

    text: str
    ends_document: bool


def read_documents(file: SourceFile, data: DataConfig, field: TextField) -> Iterator[Piece]:
    """Yield the documents of `file` in pieces of at most PIECE_CHARS characters.

    The joined pieces of a document are its text, unchanged except for a UTF-8 byte order mark at the start of a file.
    The cuts depend on the text alone.

    Args:
        file: Plain text (one document), or .jsonl, .json, .csv, .tsv or .parquet (one document a row), each also with
            .gz or .zst.
        data: How it is read.
        field: The field that holds the text; it counts the rows.

    Raises:
        InputError: The ending is unknown, the file is damaged, not UTF-8 or has no text, or a row has none.
    """
    try:
        yield from _require_text(_pieces(file, data, field), file.name, field)
    except DAMAGE as error:
        told = f"{file.name}: damaged compressed data ({error}); copy the file again"
        raise InputError(told + _looks_like(file)) from error
    except InputError as error:
        raise InputError(f"{error}{_looks_like(file)}") from error


def _pieces(file: SourceFile, data: DataConfig, field: TextField) -> Iterator[Piece]:
    ending = checked_ending(file.name)
    with ExitStack() as stack:
        raw = stack.enter_context(file.open())
        stream = stack.enter_context(decompressed(raw, file.name, data.zstd_window_bytes))
        if ending in PLAIN_TEXT_ENDINGS:
            yield from cut_pieces(decoded(stream, file.name))
            return
        read = _ROWS[ending]
        if data.csv_delimiter and isinstance(read, partial):
            read = partial(read, delimiter=data.csv_delimiter)
        for text in read(stream, file.name, field):
            yield from cut_pieces([text])


def _require_text(pieces: Iterator[Piece], name: str, field: TextField) -> Iterator[Piece]:
    rows_before = field.num_rows
    first = next(pieces, None)
    if first is None:
        num_rows = field.num_rows - rows_before
        reason = "the file is empty" if checked_ending(name) in PLAIN_TEXT_ENDINGS else "it has no rows"
        if num_rows:
            reason = f"none of its {num_rows:,} rows has text in field {field.name!r}"
        raise InputError(f"{name}: {reason}; remove it or leave it out of data.path")
    yield first
    yield from pieces


def _looks_like(file: SourceFile) -> str:
    """Return what to add to a message about a file whose content is of another format than its name says."""
    with file.open() as stream:
        beginning = stream.read(4)
    format_name = next((kind for start, kind in _BEGINNINGS.items() if beginning.startswith(start)), None)
    is_named_so = format_name is not None and f"({file.name[file.name.rfind('.') :].lower()})" in format_name
    return f"; it looks like {format_name}, whatever its name says" if format_name and not is_named_so else ""


def check_formats(files: Iterable[SourceFile]) -> None:
    """Refuse files with an unknown ending before anything is read.

    Raises:
        InputError: A file has an unknown ending; the message names every such file.
    """
    mistakes = []
    for file in files:
        try:
            checked_ending(file.name)
        except InputError as error:
            mistakes.append(str(error))
    if mistakes:
        raise InputError("\n".join(mistakes))


def cut_pieces(chunks: Iterable[str]) -> Iterator[Piece]:
    """Yield the pieces of one document, given in chunks of any size; the cuts depend on the text alone.

    Pieces are cut before a single space between words, where the pre-tokenisers of GPT-2, GPT-4 and Llama 3 cut, too,
    so the tokens are those of the whole text. Only if PIECE_CHARS characters have no such space is the cut elsewhere.
    """
    pending = ""
    for chunk in chunks:
        pending += chunk
        start = 0
        while len(pending) - start > PIECE_CHARS:
            stop = _cut_point(pending, start, start + PIECE_CHARS)
            yield Piece(pending[start:stop], False)
            start = stop
        pending = pending[start:]
    if pending:
        yield Piece(pending, True)


def _cut_point(text: str, start: int, stop: int) -> int:
    space = text.rfind(" ", start + 1, stop)
    while space > start:
        if not text[space - 1].isspace() and not text[space + 1].isspace():
            return space
        space = text.rfind(" ", start + 1, space)
    line_end = text.rfind("\n", start, stop)
    return line_end + 1 if line_end > start else stop


def checked_ending(name: str) -> str:
    """Return the ending that says how a file is read, in lower case and without that of its compression.

    Raises:
        InputError: It is unknown.
    """
    base = name.rsplit("/", 1)[-1].lower()
    stem, dot, last = base.rpartition(".")
    if dot + last in COMPRESSED_ENDINGS:
        _, dot, last = stem.rpartition(".")
    ending = dot + last if dot else ""
    if ending not in PLAIN_TEXT_ENDINGS and ending not in _ROWS:
        raise InputError(
            f"{name}: unknown ending {ending or '(none)'!r}; known are .txt .md .rst .py and other plain text, "
            f"{' '.join(_ROWS)}, each also with .gz or .zst"
        )
    return ending
