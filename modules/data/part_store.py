"""Parts of a text that are tokens already: kept until they are joined, and found again after a kill."""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import xxhash

RECORD = "record.json"
Note = dict[str, Any]
"""Plain data."""


class PartStore(Protocol):
    """Where parts are kept, each with a record, and notes; picklable.

    Several processes may use it at once: what they write under one name is the same.
    """

    def note(self, name: str) -> Note | None:
        """Return what was noted under a name; None if that is nothing or damaged."""
        ...

    def write_note(self, name: str, note: Note) -> None:
        """Note something under a name."""
        ...

    def find(self, name: str) -> Note | None:
        """Return the record of a part; None unless it is there and whole."""
        ...

    def count(self) -> int:
        """Return the number of parts that are kept; none of them is read."""
        ...

    def new_folder(self) -> Path:
        """Return an empty local folder for a part."""
        ...

    def keep(self, folder: Path, name: str, record: Note) -> None:
        """Keep a part, of which `record["files"]` lists the files and their xxh3_128; its folder is taken away."""
        ...

    def opened(self, name: str) -> Any:
        """Return a context in which a part that was found lies in a local folder, which is its value."""
        ...


class LocalParts:
    """Parts below a local folder. A part is there once its folder has its name."""

    def __init__(self, root: Path, scratch: Path):
        """Write nothing yet.

        Args:
            root: Where they lie; it need not exist.
            scratch: A folder on the same file system for parts that are being made, which the caller removes.
        """
        self._root, self._scratch = root, scratch

    def note(self, name: str) -> Note | None:
        return read_note(self._root / f"{name}.json")

    def write_note(self, name: str, note: Note) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        beside = self._root / f".{name}-{uuid.uuid4().hex[:8]}"
        beside.write_bytes(noted(note))
        os.replace(beside, self._root / f"{name}.json")

    def find(self, name: str) -> Note | None:
        record = read_note(self._root / name / RECORD)
        return record if record is not None and is_whole(self._root / name, record) else None

    def count(self) -> int:
        return len(list(self._root.glob(f"[!.]*/{RECORD}")))

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=".part-", dir=self._scratch))

    def keep(self, folder: Path, name: str, record: Note) -> None:
        (folder / RECORD).write_bytes(noted(record))
        place = self._root / name
        self._root.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # somebody else has kept the same
            os.rename(folder, place)
            return
        if self.find(name) is None:
            aside = self._root / f".{name}-{uuid.uuid4().hex[:8]}"
            os.rename(place, aside)
            os.rename(folder, place)
            shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        yield self._root / name


def noted(note: Note) -> bytes:
    """Return the content of a file from which `parsed_note` reads a note, and knows whether it is whole."""
    content = json.dumps(note)
    return json.dumps({"xxh3_128": xxhash.xxh3_128_hexdigest(content.encode()), "content": content}).encode()


def parsed_note(content: bytes) -> Note | None:
    """Return the note in the content of a file; None if it is damaged."""
    try:
        found = json.loads(content)
        if xxhash.xxh3_128_hexdigest(found["content"].encode()) == found["xxh3_128"]:
            return json.loads(found["content"])
    except (ValueError, TypeError, KeyError):
        return None
    return None


def read_note(path: Path) -> Note | None:
    """Return the note in a file; None if it is missing or damaged."""
    try:
        return parsed_note(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_whole(folder: Path, record: Mapping[str, Any]) -> bool:
    """Return whether the files that a record lists are there, with the digests that it has."""
    try:
        return all(_digest(folder / name) == digest for name, digest in record["files"].items())
    except FileNotFoundError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()
