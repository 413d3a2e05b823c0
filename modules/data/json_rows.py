"""Rows of JSON: an object a line (.jsonl), or an array of objects (.json), of which one is held at a time."""

import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from modules.data.compression import CHUNK_BYTES
from modules.data.lines import BYTE_ORDER_MARK, MAX_LINE_BYTES, decoded, line_feed_lines
from modules.data.rows import Fields, Row
from modules.errors import InputError

_WHITE = re.compile(r"[ \t\r\n]*")
_ESCAPED_NAME = re.compile(r'\\u[0-9A-Fa-f]{4}[^"\\]*"\s*:')
"""The last escape in the name of a field."""
_LONGEST_TOKEN = 32
"""An error within a word, a number or an escape that is cut off is at most this far from the end."""


def rows_of_jsonl(stream: BinaryIO, name: str, fields: Fields) -> Iterator[Row]:
    """Yield the row on each line; white lines are passed over.

    Raises:
        InputError: A line is no JSON object.
    """
    for number, line in enumerate(line_feed_lines(stream, name), start=1):
        if line.isspace():
            continue
        location = f"{name}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{location}: not JSON ({error.msg} at column {error.colno})") from error
        except (ValueError, RecursionError) as error:
            raise _beyond_limits(error, location) from error
        yield _row(row, line, fields, location)


def rows_of_json(stream: BinaryIO, name: str, fields: Fields) -> Iterator[Row]:
    """Yield the row of each object of an array; a file that holds no array is read as .jsonl, which many are.

    Raises:
        InputError: The file is neither.
    """
    buffered = io.BufferedReader(stream, CHUNK_BYTES)  # type: ignore[type-var]
    try:
        is_array = buffered.peek().removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")
        yield from (_rows_of_array if is_array else rows_of_jsonl)(buffered, name, fields)
    finally:
        buffered.detach()  # or its end would close the stream, which is open for its owner to close


def _rows_of_array(stream: BinaryIO, name: str, fields: Fields) -> Iterator[Row]:
    array = _Array(decoded(stream, name))
    try:
        for number, (row, source) in enumerate(array.elements(name), start=1):
            yield _row(row, source, fields, f"{name}, row {number}")
    except json.JSONDecodeError as error:
        raise InputError(f"{name}:{array.line(error.pos)}: not JSON ({error.msg})") from error


class _Array:
    """The part of an array's text that is being read: from the current element on."""

    def __init__(self, chunks: Iterator[str]):
        self._chunks = chunks
        self._text = ""
        self._position = 0
        self._lines_before = 0
        self._decode = json.JSONDecoder().raw_decode

    def line(self, position: int) -> int:
        """Return the line of the file that holds the character at `position` of the current text."""
        return 1 + self._lines_before + self._text.count("\n", 0, position)

    def elements(self, name: str) -> Iterator[tuple[Any, str]]:
        """Yield each element and its source.

        Raises:
            JSONDecodeError: The text is no JSON array; its position is for `line`.
        """
        self._take("[")
        if self._next() != "]":
            yield self._element(name)
            while self._next() == ",":
                self._take(",")
                yield self._element(name)
        self._take("]")
        if self._next():
            raise json.JSONDecodeError("text after the array", self._text, self._position)

    def _next(self) -> str:
        """Step over white space, and return the character there; empty at the end of the file."""
        while (found := _WHITE.match(self._text, self._position)) and found.end() == len(self._text):
            self._position = found.end()
            if not self._read():
                return ""
        self._position = found.end() if found else self._position
        return self._text[self._position]

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise json.JSONDecodeError(f"expecting {character!r}", self._text, self._position)
        self._position += 1

    def _element(self, name: str) -> tuple[Any, str]:
        self._next()
        while True:
            try:
                value, stop = self._decode(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut_off = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_TOKEN
                if not is_cut_off or not self._read():
                    raise
            except (ValueError, RecursionError) as error:
                raise _beyond_limits(error, f"{name}:{self.line(self._position)}") from error
            else:
                source, self._position = self._text[self._position : stop], stop
                return value, source

    def _read(self) -> bool:
        """Drop what is behind, and double what is ahead, so that reading a long element takes linear time."""
        ahead = self._text[self._position :]
        if len(ahead) >= MAX_LINE_BYTES:
            raise json.JSONDecodeError(f"a row of {MAX_LINE_BYTES} characters or more", self._text, self._position)
        parts, size = [], 0
        while size <= len(ahead) and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            size += len(chunk)
        if size:
            self._lines_before += self._text.count("\n", 0, self._position)
            self._text, self._position = "".join([ahead, *parts]), 0
        return size > 0


def _beyond_limits(error: Exception, location: str) -> InputError:
    """Return the error to raise for JSON that is valid, but beyond what Python reads."""
    digits = f"a number of more than {sys.get_int_max_str_digits()} digits"
    return InputError(f"{location}: {'JSON nested too deeply' if isinstance(error, RecursionError) else digits}")


def _row(row: Any, source: str, fields: Fields, location: str) -> Row:
    if not isinstance(row, dict):
        example = ", ".join(f"{json.dumps(path)}: …" for path in fields.required)
        raise InputError(f"{location}: not a JSON object; each row must be like {{{example}}}")
    found = fields.of(row, location)
    # of two fields of one name, Python keeps the second and says nothing
    is_doubled = any(source.count(f'"{step}"') > 1 for step in fields.steps)
    holds_objects = any(isinstance(value, dict | list) for value in found.values.values())
    if is_doubled or holds_objects or _ESCAPED_NAME.search(source):
        try:
            _check_doubles(json.loads(source, object_pairs_hook=_Pairs), fields, location)
        except RecursionError as error:
            raise _beyond_limits(error, location) from error
    return found


class _Pairs(dict[str, Any]):
    """A JSON object that knows which of its fields it has twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.doubles = {name for name, number in Counter(name for name, _ in pairs).items() if number > 1}


def _check_doubles(row: _Pairs, fields: Fields, location: str) -> None:
    """Refuse a row that has a field twice on the way to one that is asked for, or within it."""
    for path in fields.settings:
        for name in _doubles(row, path):
            raise InputError(f"{location}: two fields are named {name!r}; rename or remove one")


def _doubles(row: Any, path: str) -> Iterator[str]:
    """Yield the names that stand twice on the way to `path`, which goes as in `rows.look_up`, and within its value."""
    if not isinstance(row, _Pairs):
        return
    first, dot, rest = path.partition(".")
    name = path if path in row else first
    if name in row.doubles:
        yield name
    if name == path:
        yield from _doubles_within(row.get(name))
    elif dot:
        yield from _doubles(row.get(first), rest)


def _doubles_within(value: Any) -> Iterator[str]:
    if isinstance(value, _Pairs):
        yield from value.doubles
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _doubles_within(item)
