"""Rows: the fields that are asked of each, which of them holds the text, and what becomes of a row without one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

from modules.config import DataConfig
from modules.data.document_rows import NO_PLACE, Place
from modules.errors import InputError

_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
"""What a value is called in messages; other types, which only Parquet has, go by their Python name."""
_WRITTEN_OUT = (date, time, timedelta, Decimal)
"""Types beyond those of JSON whose values become text."""


class Row(NamedTuple):
    """The fields that were asked of a row."""

    values: Mapping[str, Any]
    """Each by the path that was asked for; one that the row lacks is left out."""
    location: str
    """Where the row is, with which messages about it begin: `a.jsonl:12`, or `a.parquet, row 4`."""
    names: Sequence[str] = ()
    """The fields that the row has, if it lacks one that was required."""
    place: Place = NO_PLACE
    """The same as `location`, in numbers, once `SplitRows` has counted files and rows."""

    def no_field(self, path: str) -> str:
        """Return the beginning of a message about a row that lacks the field `path`."""
        return f"{self.location}: no field {path!r}; fields here: {', '.join(map(repr, self.names[:8])) or 'none'}"


@dataclass(frozen=True)
class Fields:
    """The fields to read of each row, by paths: `a.b` is a field of that name, or `b` within `a`."""

    required: Mapping[str, str]
    """Each with the setting that names it, which messages name. A table without such a column is refused."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """The same of fields that may be absent."""

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """The setting that names each field, required or not."""
        return {**self.optional, **self.required}

    @cached_property
    def steps(self) -> frozenset[str]:
        """The names of all fields that are passed on the way to those asked for."""
        return frozenset(step for path in self.settings for step in (path, *path.split(".")))

    def of(self, row: Mapping[str, Any], location: str) -> Row:
        """Return the asked-for fields of `row`."""
        values = {}
        for path in self.settings:
            is_there, value = (True, row[path]) if path in row else look_up(row, path)
            if is_there:
                values[path] = value
        return Row(values, location, () if self.required.keys() <= values.keys() else _field_names(row))


class TextField:
    """The field that holds the text of a row (`data.text_field`); it counts the rows, and those without text."""

    def __init__(self, data: DataConfig):
        self.name = data.text_field
        self.fields = Fields({self.name: "data.text_field"})
        self._skips = data.missing == "skip"
        self.num_rows = 0
        self.num_left_out = 0
        self.first_left_out: str | None = None
        """Where the first row without text is and why it has none."""

    def text(self, row: Row) -> str:
        """Return the text of `row`; an empty text for a row without one, if such rows are skipped.

        Raises:
            InputError: The row has no text, or something else in the field; the message begins with its location.
        """
        self.num_rows += 1
        if self.name not in row.values:
            return self._without_text(row.no_field(self.name), "data.text_field, or ")
        value, start = row.values[self.name], f"{row.location}: field {self.name!r}"
        if value is None or value in ("", b""):
            return self._without_text(f"{start} is {'null' if value is None else 'empty'}")
        if not isinstance(value, str | bytes):
            kind = _KINDS.get(type(value), type(value).__name__)
            raise InputError(f"{start} holds {kind}, not text; set data.text_field")
        return _checked(value, start)

    def add(self, num_rows: int, num_left_out: int, first_left_out: str | None) -> None:
        """Count rows that were read elsewhere, after those counted so far."""
        self.num_rows += num_rows
        self.num_left_out += num_left_out
        self.first_left_out = self.first_left_out or first_left_out

    def left_out_line(self) -> str:
        """Return how many rows have been left out, and the first of them."""
        return f"left out {self.num_left_out:,} of {self.num_rows:,} rows, which have no text; {self.first_left_out}"

    def _without_text(self, reason: str, other_remedy: str = "") -> str:
        if not self._skips:
            raise InputError(f"{reason}; set {other_remedy}data.missing=skip, which leaves rows without text out")
        self.num_left_out += 1
        self.first_left_out = self.first_left_out or f"the first is {reason}"
        return ""


def checked(row: Row) -> Row:
    """Return `row` with values of JSON's types alone; bytes, which Parquet may have for text, become text.

    Raises:
        InputError: A value holds, at any depth, text that is not Unicode, or something that no type of JSON can hold.
    """
    values = {path: _checked(value, f"{row.location}: field {path!r}") for path, value in row.values.items()}
    return row._replace(values=values)


def _checked(value: Any, start: str) -> Any:
    try:
        return _plain(value)
    except UnicodeDecodeError as error:
        raise InputError(f"{start} is not UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{start} holds half a surrogate pair at character {error.start}") from error
    except RecursionError as error:
        raise InputError(f"{start} is nested too deeply") from error
    except TypeError as error:
        raise InputError(f"{start} holds {error}, which is neither text nor a number, list or object") from error


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        value.encode()
        return value
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, bytes):  # Parquet columns of text may be marked as bytes alone
        return value.decode()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, _WRITTEN_OUT):
        return str(value)
    raise TypeError(type(value).__name__)


def look_up(row: Any, path: str) -> tuple[bool, Any]:
    """Return whether `row` has the field `path`, and its value; `a.b` is a field of that name, or `b` within `a`."""
    if not isinstance(row, dict):
        return False, None
    if path in row:
        return True, row[path]
    first, dot, rest = path.partition(".")
    return look_up(row.get(first), rest) if dot else (False, None)


def _field_names(row: Mapping[str, Any]) -> list[str]:
    """Return the names by which a path reaches the fields of `row`, those of nested objects with a dot."""
    nested = ([f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key] for key, value in row.items())
    return [name for names in nested for name in names]
