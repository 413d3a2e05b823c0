"""Text files as a stream of documents. Memory is bounded: files and long plain texts are never read as a whole."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from modules.config import DataConfig
from modules.data.document_rows import NO_PLACE, Place
from modules.data.lines import decoded
from modules.data.row_files import rows_of_file
from modules.data.rows import TextField
from modules.data.source_files import PLAIN_TEXT_ENDINGS, SourceFile, checked_ending, damage_told, opened
from modules.errors import InputError

PIECE_CHARS = 2**14
"""Largest piece of a document in characters; `tokenizers` is fastest with pieces of this size (measured)."""


class Piece(NamedTuple):
    """A document or a part of a long one; parts follow each other, and only the last has `ends_document`."""

    text: str
    ends_document: bool
    place: Place = NO_PLACE
    """Where the document comes from."""


def read_documents(file: SourceFile, data: DataConfig, field: TextField, file_number: int = 0) -> Iterator[Piece]:
    """Yield the documents of `file` in pieces of at most PIECE_CHARS characters.

    The joined pieces of a document are its text, unchanged except for a UTF-8 byte order mark at the start of a file.
    The cuts depend on the text alone.

    Args:
        file: Plain text (one document), or .jsonl, .json, .csv, .tsv or .parquet (one document a row), each also with
            .gz or .zst.
        data: How it is read.
        field: The field that holds the text; it counts the rows.
        file_number: Of the file, for the places of its documents.

    Raises:
        InputError: The ending is unknown, the file is damaged, not UTF-8 or has no text, or a row has none.
    """
    with damage_told(file):
        yield from _require_text(_pieces(file, data, field, file_number), file.name, field)


def _pieces(file: SourceFile, data: DataConfig, field: TextField, file_number: int) -> Iterator[Piece]:
    if checked_ending(file.name) in PLAIN_TEXT_ENDINGS:
        with opened(file, data) as stream:
            yield from cut_pieces(decoded(stream, file.name), Place(file_number, 0))
        return
    for number, row in enumerate(rows_of_file(file, data, field.fields)):
        yield from cut_pieces([field.text(row)], Place(file_number, number))


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


def cut_pieces(chunks: Iterable[str], place: Place = NO_PLACE) -> Iterator[Piece]:
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
            yield Piece(pending[start:stop], False, place)
            start = stop
        pending = pending[start:]
    if pending:
        yield Piece(pending, True, place)


def _cut_point(text: str, start: int, stop: int) -> int:
    space = text.rfind(" ", start + 1, stop)
    while space > start:
        if not text[space - 1].isspace() and not text[space + 1].isspace():
            return space
        space = text.rfind(" ", start + 1, space)
    line_end = text.rfind("\n", start, stop)
    return line_end + 1 if line_end > start else stop
