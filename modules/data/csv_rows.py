"""Rows of .csv and .tsv files, as RFC 4180 has them: a header, and as many fields in each row."""

import csv
from collections.abc import Iterator
from typing import BinaryIO

from modules.data.lines import MAX_LINE_BYTES, any_end_lines, decoded
from modules.data.rows import Fields, Row
from modules.errors import InputError

_DELIMITERS = ",;\t|"


def rows_of_csv(stream: BinaryIO, name: str, fields: Fields, delimiter: str) -> Iterator[Row]:
    """Yield each row after the header; blank lines are passed over.

    Raises:
        InputError: The text is no CSV, the header lacks a required field, or a row has more or fewer fields than the
            header; the message names the line, which is the first one of a row of several.
    """
    rows = _numbered_rows(stream, name, delimiter)
    number, header = next(rows, (0, []))
    columns = _columns(header, fields, f"{name}:{number}", delimiter) if header else {}
    for number, row in rows:
        # trailing commas, which spreadsheets leave, hold nothing
        if len(row) < len(header) or any(row[len(header) :]):
            raise InputError(
                f"{name}:{number}: {len(row)} field{'s' * (len(row) != 1)}, but the header has {len(header)}; "
                f"a text with {delimiter!r} or a line break in it must be in double quotes"
            )
        yield Row({path: row[column] for path, column in columns.items()}, f"{name}:{number}")


def _numbered_rows(stream: BinaryIO, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the number of its first line."""
    csv.field_size_limit(MAX_LINE_BYTES)  # global to the csv module; the default refuses texts above 128 KiB
    lines = _Counted(any_end_lines(decoded(stream, name), name))
    rows = csv.reader(lines, strict=True, delimiter=delimiter)
    while True:
        first = lines.number + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise InputError(_explained(str(error), name, first, lines)) from error
        if row is None:
            return
        if row:
            yield first, row


class _Counted:
    """An iterator that counts what it has given, and keeps the last of it."""

    def __init__(self, lines: Iterator[str]):
        self._lines = lines
        self.number = 0
        self.last = ""

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> str:
        self.last = next(self._lines)
        self.number += 1
        return self.last


def _explained(message: str, name: str, first_line: int, lines: _Counted) -> str:
    if message == "unexpected end of data":
        return f"{name}:{first_line}: a double quote is opened in this row and never closed"
    if "field limit" in message:
        return f"{name}:{first_line}: a field of {MAX_LINE_BYTES} characters or more; is a double quote never closed?"
    if "expected after" in message:
        told = f"{name}:{lines.number}: text follows a closing quote; write a double quote within a quoted text twice"
        other = next((other for other in _DELIMITERS if f'"{other}"' in lines.last), None)
        return told + (f", or set data.csv_delimiter={_typed(other)} if that separates columns" if other else "")
    return f"{name}:{lines.number}: not CSV ({message})"


def _columns(header: list[str], fields: Fields, location: str, delimiter: str) -> dict[str, int]:
    """Return the column of each field that the header has."""
    for path in fields.settings:
        if header.count(path) > 1:
            raise InputError(f"{location}: {header.count(path)} columns are named {path!r}; rename the others")
        if path in fields.required and path not in header:
            raise InputError(f"{location}: no column {path!r}{_remedy(header, path, fields, delimiter)}")
    return {path: header.index(path) for path in fields.settings if path in header}


def _remedy(header: list[str], path: str, fields: Fields, delimiter: str) -> str:
    if other := _other_delimiter(header, path, delimiter):
        line = delimiter.join(header)[:80]
        return f" in {line!r}, which looks separated by {other!r}; set data.csv_delimiter={_typed(other)}"
    return f"; columns here: {', '.join(map(repr, header[:8]))}; set {fields.settings[path]}"


def _other_delimiter(header: list[str], path: str, delimiter: str) -> str | None:
    line = delimiter.join(header)
    others = [other for other in _DELIMITERS if other != delimiter and other in line]
    named = [other for other in others if path in (part.strip('"') for part in line.split(other))]
    return next(iter(named or (others if len(header) == 1 else [])), None)


def _typed(delimiter: str) -> str:
    return "'\\t'" if delimiter == "\t" else f"'{delimiter}'"
