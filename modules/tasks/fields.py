"""The fields of a row that tasks read: checked, with messages that begin with where the row is."""

from collections.abc import Iterable
from typing import Any

from modules.config import Config
from modules.data.rows import Fields, Row
from modules.errors import InputError

_SHOWN_CHARS = 40


def fields_of(settings: Config, required: Iterable[str], optional: Iterable[str] = ()) -> Fields:
    """Return the fields to read of each row, each with the setting of the task that names it."""
    named = {getattr(settings, name): f"task.{name}" for name in type(settings).model_fields if name.endswith("_field")}
    return Fields({path: named[path] for path in required}, {path: named[path] for path in optional})


def given_text(row: Row, path: str, setting: str) -> str:
    """Return the text of a field that a row must have.

    Args:
        row: The row.
        path: The field.
        setting: What names it in the configuration, such as `task.text_field`.

    Raises:
        InputError: The row has no such field, or no text in it.
    """
    text = text_if_given(row, path, setting)
    if text is None:
        raise InputError(f"{row.location}: {missing(row, path)}; name another field in {setting}, or remove the row")
    return text


def text_if_given(row: Row, path: str, setting: str) -> str | None:
    """As `given_text`, but None where the row has no such field or null in it."""
    value = row.values.get(path)
    if value is None:
        return None
    return checked_text(value, f"{row.location}: field {path!r}", f"name a field of text in {setting}")


def missing(row: Row, path: str) -> str:
    """Return what to say of a field that the row has not, or that is null."""
    return f"field {path!r} is null" if path in row.values else f"no field {path!r}"


def checked_text(value: Any, place: str, remedy: str) -> str:
    """Return a value that is text; Parquet may mark columns of text as bytes alone.

    Args:
        value: The value.
        place: What a message begins with, as `a.jsonl:3: field 'text'`.
        remedy: What mends a value that is no text.

    Raises:
        InputError: It is none, or no valid Unicode.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if isinstance(text, str):
            text.encode()
            return text
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 at byte {error.start}; repair the row") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{place} holds half a surrogate pair at character {error.start}; repair the row") from error
    raise InputError(f"{place} holds {shown(value)}, not text; {remedy}")


def shown(value: Any) -> str:
    """Return a value as messages show it."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
