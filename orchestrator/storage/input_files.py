"""Find the input files that a user names by path, folder, glob or URL."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import has_magic
from io import BufferedReader
from pathlib import Path
from typing import Any

import xxhash

from orchestrator.errors import UserError
from orchestrator.storage.access import (
    check_url,
    is_local,
    open_url,
    path_of,
    run_on_url,
)
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.redaction import redact

_MAX_MISTAKES = 20
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "content_md5", "x-goog-hash", "generation", "LastModified")


@dataclass(frozen=True)
class StoredFile:
    """One input file; it can be pickled and opened in another process."""

    url: str = field(repr=False)
    """Absolute path or URL; may hold a signed query, so it is never shown."""
    name: str
    """The name to show: as the user wrote it, without credentials."""
    num_bytes: int

    def open(self) -> BufferedReader:
        """Return the raw bytes, from the start."""
        return open_url(self.url)

    def identity(self) -> str:
        """Return what changes with the content: the digest of a local file, the version of a remote one."""
        if is_local(self.url):
            with self.open() as file:
                return f"xxh3_128:{hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()}"
        return run_on_url("look at", self.url, _version)


def find_files(paths: Sequence[str]) -> list[StoredFile]:
    """Return the files that `paths` name, each once, in the order of `paths` and by name within each.

    Args:
        paths: files, folders (searched to the bottom, hidden names skipped), globs, and URLs of all three.

    Raises:
        UserError: lists each path that matches nothing, and each file that is empty.
    """
    mistakes: list[str] = []
    found: dict[str, StoredFile] = {}
    for path in paths:
        check_url(path)
        files = _matches(path)
        if not files:
            mistakes.append(f"{redact(path)}: matches no file")
        mistakes += [f"{file.name}: is empty (0 bytes)" for file in files if file.num_bytes == 0]
        found.update((file.url, file) for file in files if file.url not in found)
    if mistakes:
        rest = [f"… and {len(mistakes) - _MAX_MISTAKES} more"] if len(mistakes) > _MAX_MISTAKES else []
        raise UserError("\n".join(mistakes[:_MAX_MISTAKES] + rest))
    return list(found.values())


def _matches(path: str) -> list[StoredFile]:
    path = os.path.expanduser(path) if is_local(path) else path
    try:
        found = run_on_url("look at", path, lambda fs, inner: _entries(fs, inner, path))
    except NotFoundError:
        return []
    return sorted((_stored(fs, entry, path) for fs, entry in found), key=lambda file: file.name)


def _entries(fs: Any, inner: str, path: str) -> list[tuple[Any, dict[str, Any]]]:
    try:
        # not `isdir`, which over http would fetch the file and search it for links
        entry = fs.info(inner)
    except FileNotFoundError:
        # a glob only if there is no such file: names and signed queries may contain the same characters
        if not has_magic(path):
            raise
        root, entries = _fixed_part(inner), fs.glob(inner, detail=True)
    else:
        if entry["type"] == "file":
            return [(fs, entry)]
        root, entries = inner, fs.find(inner, detail=True)
    return [(fs, entry) for entry in entries.values() if _is_file(entry) and not _is_hidden(entry["name"], root)]


def _is_file(entry: dict[str, Any]) -> bool:
    # fsspec reports a local link in a folder as "other"
    return entry["type"] == "file" or (bool(entry.get("islink")) and os.path.isfile(entry["name"]))


def _fixed_part(pattern: str) -> str:
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first])


def _is_hidden(name: str, root: str) -> bool:
    return any(part.startswith(".") for part in name[len(root) :].split("/"))


def _stored(fs: Any, entry: dict[str, Any], path: str) -> StoredFile:
    if entry.get("size") is None:
        raise UserError(f"{redact(path)}: the server does not tell its size; download it and name the local file")
    if is_local(path):
        absolute = os.path.abspath(entry["name"])
        relative = os.path.relpath(absolute)
        name = absolute if os.path.isabs(path_of(path)) or relative.startswith("..") else relative
        return StoredFile(absolute, Path(name).as_posix(), int(entry["size"]))
    # a signed query belongs to a single file, and fsspec keeps it in the name
    url = fs.unstrip_protocol(entry["name"])
    return StoredFile(url, redact(url), int(entry["size"]))


def _version(fs: Any, path: str) -> str:
    info = fs.info(path)
    for name in _VERSION_FIELDS:
        if info.get(name):
            return f"{name}:{info[name]}:{info['size']}"
    return f"ukey:{fs.ukey(path)}"
