"""Text files as a stream of documents. Memory is bounded: files and long plain texts are never read as a whole."""

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple, Protocol

from modules.data.compression import CHUNK_BYTES, COMPRESSED_ENDINGS, DAMAGE, decompressed, import_package, seekable
from modules.errors import InputError

PIECE_CHARS = 2**14
"""Largest piece of a document in characters; `tokenizers` is fastest with pieces of this size (measured)."""
MAX_LINE_BYTES = 2**28
"""A line of a .jsonl or .csv file must be shorter than this, so that memory stays bounded."""

PLAIN_TEXT = (
    "txt text md markdown rst tex log html htm xml css py pyi c h cc cpp hpp cs java js ts go rs rb php sh sql toml "
    "yaml yml ini cfg r jl lua pl scala swift kt"
)
PLAIN_TEXT_ENDINGS = frozenset(f".{ending}" for ending in PLAIN_TEXT.split())


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


def read_documents(file: SourceFile, text_field: str) -> Iterator[Piece]:
    """Yield the documents of `file` in pieces of at most PIECE_CHARS characters.

    The joined pieces of a document are its text, unchanged except for a UTF-8 byte order mark at the start of a file.
    The cuts depend on the text alone. Documents without text are left out.

    Args:
        file: Plain text (one document), .jsonl, .csv or .parquet (one document a row), each also with .gz or .zst.
        text_field: Field or column that holds the text.

    Raises:
        InputError: The ending is unknown, the file is empty, damaged or not UTF-8, or a row has no text.
    """
    read = _reader(file.name)
    with ExitStack() as stack:
        stream = stack.enter_context(file.open())
        try:
            pieces = read(stack.enter_context(decompressed(stream, file.name)), file.name, text_field)
            yield from _require_text(pieces, file.name)
        except DAMAGE as error:
            raise InputError(f"{file.name}: damaged compressed data ({error}); copy the file again") from error


def _require_text(pieces: Iterator[Piece], name: str) -> Iterator[Piece]:
    first = next(pieces, None)
    if first is None:
        raise InputError(f"{name}: the file is empty; remove it or leave it out of data.path")
    yield first
    yield from pieces


def check_formats(files: Iterable[SourceFile]) -> None:
    """Refuse files with an unknown ending before anything is read.

    Raises:
        InputError: A file has an unknown ending; the message names every such file.
    """
    mistakes = []
    for file in files:
        try:
            _reader(file.name)
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


def _reader(name: str) -> Callable[[BinaryIO, str, str], Iterator[Piece]]:
    ending = _ending(name)
    if ending in PLAIN_TEXT_ENDINGS:
        return _read_text
    rows = {".jsonl": _jsonl_texts, ".csv": _csv_texts, ".parquet": _parquet_texts}.get(ending)
    if rows is None:
        raise InputError(
            f"{name}: unknown ending {ending or '(none)'!r}; known are .txt .md .rst .py and other plain text, .jsonl, "
            ".csv and .parquet, each also with .gz or .zst"
        )
    return lambda stream, name, field: (piece for text in rows(stream, name, field) for piece in cut_pieces([text]))


def _ending(name: str) -> str:
    base = name.rsplit("/", 1)[-1].lower()
    stem, dot, last = base.rpartition(".")
    if dot + last in COMPRESSED_ENDINGS:
        _, dot, last = stem.rpartition(".")
    return dot + last


def _read_text(stream: BinaryIO, name: str, _: str) -> Iterator[Piece]:
    return cut_pieces(_decoded(iter(lambda: stream.read(CHUNK_BYTES), b""), name))


def _decoded(chunks: Iterable[bytes], name: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    num_bytes = 0
    try:
        for chunk in chunks:
            num_bytes += len(chunk)
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # error.object ends at the last byte read so far and may begin with bytes left over from an earlier chunk
        raise _undecodable(name, num_bytes - len(error.object) + error.start, error) from error


def _undecodable(name: str, offset: int, error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"{name}: byte {offset} (0x{error.object[error.start]:02x}) is not UTF-8 ({error.reason}); "
        "convert the file to UTF-8"
    )


def _decoded_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES), b""), start=1):
        if len(line) == MAX_LINE_BYTES:
            raise InputError(f"{name}:{number}: a line of {MAX_LINE_BYTES} bytes or more; put long texts in .txt files")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise _undecodable(name, offset + error.start, error) from error
        offset += len(line)
        yield text.removeprefix("\ufeff") if number == 1 else text


def _jsonl_texts(stream: BinaryIO, name: str, field: str) -> Iterator[str]:
    for number, line in enumerate(_decoded_lines(stream, name), start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}:{number}: not JSON ({error.msg} at column {error.colno})") from error
        except RecursionError as error:
            raise InputError(f"{name}:{number}: JSON nested too deeply") from error
        if not isinstance(row, dict):
            raise InputError(
                f"{name}:{number}: the line is not a JSON object; each line must be like {{{json.dumps(field)}: …}}"
            )
        yield row_text(row, field, f"{name}:{number}")


def row_text(row: dict[str, Any], field: str, location: str) -> str:
    """Return the text of `row`.

    Raises:
        InputError: There is no such field, or it holds no valid text; the message begins with `location`.
    """
    if field not in row:
        found = ", ".join(map(repr, list(row)[:8])) or "none"
        raise InputError(f"{location}: no field {field!r}; fields here: {found}; set data.text_field")
    text = row[field]
    if not isinstance(text, str):
        raise InputError(f"{location}: field {field!r} holds {type(text).__name__}, not text; set data.text_field")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{location}: field {field!r} holds half a surrogate pair at character {error.start}"
            ) from error
    return text


def _csv_texts(stream: BinaryIO, name: str, field: str) -> Iterator[str]:
    csv.field_size_limit(MAX_LINE_BYTES)  # global to the csv module; the default refuses texts above 128 KiB
    rows = csv.DictReader(_decoded_lines(stream, name), strict=True)
    try:
        for row in rows:
            yield row_text(row, field, f"{name}:{rows.line_num}")
    except csv.Error as error:
        raise InputError(f"{name}:{rows.line_num}: not CSV ({error})") from error


def _parquet_texts(stream: BinaryIO, name: str, field: str) -> Iterator[str]:
    import_package("pyarrow", "to read .parquet files")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with seekable(stream) as table_stream:
        try:
            table = ParquetFile(table_stream, buffer_size=CHUNK_BYTES)  # a buffer makes it stream within a row group
            if field not in table.schema_arrow.names:
                row_text(dict.fromkeys(table.schema_arrow.names), field, name)
            for number, text in enumerate(_column(table, field), start=1):
                yield row_text({field: text}, field, f"{name}, row {number}")
        except ArrowException as error:
            raise InputError(f"{name}: not a readable Parquet file ({error})") from error


def _column(table: Any, field: str) -> Iterator[Any]:
    for batch in table.iter_batches(batch_size=64, columns=[field]):
        yield from batch.column(0).to_pylist()
