"""Rows of text files: which field holds the text, and what becomes of a row without one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from modules.config import DataConfig
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


class Row(NamedTuple):
    """The fields of a row that were asked for."""

    values: Mapping[str, Any]
    """By the path that was asked for; a field that the row lacks is left out."""
    location: str
    """Where it is, as messages begin: `file.jsonl:12`, or `file.parquet, row 4`."""


class TextField:
    """The field that holds the text of a row (`data.text_field`); it counts the rows, and those without text."""

    def __init__(self, data: DataConfig):
        self.name = data.text_field
        self.parts = data.text_field.split(".")
        self._skips = data.missing == "skip"
        self.num_rows = 0
        self.num_left_out = 0
        self.first_left_out: str | None = None
        """Where the first row without text is and why it has none."""

    def text(self, row: dict[str, Any], location: str) -> str:
        """Return the text of `row`; an empty text for a row without one, if such rows are skipped.

        Raises:
            InputError: The row has no text, or something else in the field; the message begins with `location`.
        """
        self.num_rows += 1
        found, value = look_up(row, self.name)
        if not found:
            fields = ", ".join(map(repr, _field_names(row)[:8])) or "none"
            return self._without_text(
                f"{location}: no field {self.name!r}; fields here: {fields}", "data.text_field, or "
            )
        if value is None or value in ("", b""):
            return self._without_text(f"{location}: field {self.name!r} is {'null' if value is None else 'empty'}")
        return self._checked(value, location)

    def left_out_line(self) -> str:
        """Return how many rows have been left out, and the first of them."""
        return f"left out {self.num_left_out:,} of {self.num_rows:,} rows, which have no text; {self.first_left_out}"

    def _without_text(self, reason: str, other_remedy: str = "") -> str:
        if not self._skips:
            raise InputError(f"{reason}; set {other_remedy}data.missing=skip, which leaves rows without text out")
        self.num_left_out += 1
        self.first_left_out = self.first_left_out or f"the first is {reason}"
        return ""

    def _checked(self, value: Any, location: str) -> str:
        try:
            if isinstance(value, bytes):  # Parquet columns of text may be marked as bytes alone
                return value.decode()
            if isinstance(value, str):
                value.encode()
                return value
        except UnicodeDecodeError as error:
            raise InputError(f"{location}: field {self.name!r} is not UTF-8 at byte {error.start}") from error
        except UnicodeEncodeError as error:
            raise InputError(
                f"{location}: field {self.name!r} holds half a surrogate pair at character {error.start}"
            ) from error
        kind = _KINDS.get(type(value), type(value).__name__)
        raise InputError(f"{location}: field {self.name!r} holds {kind}, not text; set data.text_field")


def look_up(row: Any, path: str) -> tuple[bool, Any]:
    """Return whether `row` has the field `path`, and its value; `a.b` is a field of that name, or `b` within `a`."""
    if not isinstance(row, dict):
        return False, None
    if path in row:
        return True, row[path]
    first, dot, rest = path.partition(".")
    return look_up(row.get(first), rest) if dot else (False, None)


def _field_names(row: dict[str, Any]) -> list[str]:
    """Return the names by which `data.text_field` reaches the fields of `row`, those of nested objects with a dot."""
    nested = ([f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key] for key, value in row.items())
    return [name for names in nested for name in names]
