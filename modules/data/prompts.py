"""Files of prompts: a prompt a line (.txt), or the field `prompt` of a JSON object a line (.jsonl)."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from modules.data.compression import COMPRESSED_ENDINGS, DAMAGE, decompressed
from modules.data.lines import line_feed_lines
from modules.data.source_files import SourceFile
from modules.errors import InputError

FIELD = "prompt"
_MAX_MISTAKES = 20
_ZSTD_WINDOW_BYTES = 2**31


class FilePrompt(NamedTuple):
    """A prompt and where it is."""

    text: str
    location: str
    """File and line, as in `prompts.txt:3`."""


def read_prompts(file: SourceFile) -> list[FilePrompt]:
    """Return the prompts of a .txt or .jsonl file, also one that ends with .gz or .zst, in its order.

    Raises:
        InputError: The file is damaged, not UTF-8 or has no prompt; or the bad lines, each with its reason.
    """
    mistakes: list[str] = []
    try:
        with file.open() as stream:
            prompts = list(_prompts(decompressed(stream, file.name, _ZSTD_WINDOW_BYTES), file.name, mistakes))
    except DAMAGE as error:
        raise InputError(f"{file.name}: damaged compressed data ({error}); copy the file again") from error
    if mistakes:
        rest = [f"… and {len(mistakes) - _MAX_MISTAKES} more"] if len(mistakes) > _MAX_MISTAKES else []
        raise InputError("\n".join(mistakes[:_MAX_MISTAKES] + rest))
    if not prompts:
        raise InputError(f"{file.name}: has no prompt")
    return prompts


def _prompts(stream: BinaryIO, name: str, mistakes: list[str]) -> Iterator[FilePrompt]:
    stem = name.lower()
    for ending in COMPRESSED_ENDINGS:
        stem = stem.removesuffix(ending)
    read = _from_row if stem.endswith(".jsonl") else _from_line
    for number, line in enumerate(line_feed_lines(stream, name), start=1):
        try:
            text = read(line)
        except ValueError as error:
            mistakes.append(f"{name}:{number}: {error}")
        else:
            if text is not None:
                yield FilePrompt(text, f"{name}:{number}")


def _from_line(line: str) -> str:
    text = line.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError(f'is empty; remove the line, or write {{"{FIELD}": ""}} in a .jsonl')
    return text


def _from_row(line: str) -> str | None:
    """Return the prompt of a row; None of a white line."""
    if not line.strip():
        return None
    try:
        row = json.loads(line, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if not isinstance(row, dict) or not isinstance(row.get(FIELD), str):
        raise ValueError(f'must be like {{"{FIELD}": "text"}}')
    try:
        row[FIELD].encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{FIELD!r} holds half a surrogate pair at character {error.start}") from error
    return row[FIELD]


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if sum(name == FIELD for name, _ in pairs) > 1:
        raise ValueError(f"two fields are named {FIELD!r}; rename or remove one")
    return dict(pairs)
