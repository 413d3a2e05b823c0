"""Find the input files that a user names by path, folder, glob or URL."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import has_magic
from io import BufferedReader
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
from orchestrator.storage.known_digests import known_digest
from orchestrator.storage.local_files import find_local_files
from orchestrator.storage.redaction import redact, without_query

_MAX_MISTAKES = 20
_VERSION_FIELDS = (
    *("ETag", "etag", "md5Hash", "content_md5", "x-goog-hash", "generation", "LastModified"),
    *("Content-MD5", "Digest", "Last-Modified"),  # of web servers
)


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
        """Return what changes with the content: the digest of a local file, the version of a remote one.

        A local file is read once, and again when its size, a time or its inode has changed.
        A web server that tells no version has the file digested, too: its URL may hold a signature, which changes
        although the content does not, and says nothing of a content that changes.
        """
        if is_local(self.url):
            return f"xxh3_128:{run_on_url('read', self.url, lambda _, path: known_digest(path, self.open))}"
        version = run_on_url("look at", self.url, _version)
        if version is not None:
            return version
        with self.open() as file:
            return f"xxh3_128:{hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()}"


def find_files(paths: Sequence[str]) -> list[StoredFile]:
    """Return the files that `paths` name, each once, in the order of `paths` and by name within each.

    Args:
        paths: files, folders (searched to the bottom, hidden names skipped), globs, and URLs of all three.

    Raises:
        UserError: lists each path that matches nothing, and each file that is empty or cannot be read.
    """
    mistakes: list[str] = []
    found: dict[str, StoredFile] = {}
    for path in paths:
        check_url(path)
        files, unreadable = _local_matches(path) if is_local(path) else (_remote_matches(path), [])
        if not files and not unreadable:
            mistakes.append(f"{redact(path)}: matches no file")
        mistakes += unreadable + [
            f"{file.name}: is empty (0 bytes); remove it or leave it out" for file in files if file.num_bytes == 0
        ]
        found.update((file.url, file) for file in files if file.url not in found)
    if mistakes:
        rest = [f"… and {len(mistakes) - _MAX_MISTAKES} more"] if len(mistakes) > _MAX_MISTAKES else []
        raise UserError("\n".join(mistakes[:_MAX_MISTAKES] + rest))
    return list(found.values())


def _local_matches(path: str) -> tuple[list[StoredFile], list[str]]:
    """Return the files that a local path leads to, and a line for everything there that cannot be read."""
    found = run_on_url("look at", path, lambda *_: find_local_files(path_of(path)))
    files = [StoredFile(file, _local_name(file, path), size) for file, size in found.sizes.items()]
    mistakes = [f"{_local_name(file, path)}: {reason}" for file, reason in found.unreadable.items()]
    return sorted(files, key=lambda file: file.name), sorted(mistakes)


def _local_name(absolute: str, path: str) -> str:
    """Return the name to show: relative to the current folder if `path` is and the file is below it."""
    relative = os.path.relpath(absolute)
    is_below = not os.path.isabs(os.path.expanduser(path_of(path))) and not relative.startswith("..")
    return relative if is_below else absolute


def _remote_matches(url: str) -> list[StoredFile]:
    try:
        found = run_on_url("look at", url, lambda fs, inner: _entries(fs, inner, url))
    except NotFoundError:
        return []
    return sorted((_stored(fs, entry, url) for fs, entry in found), key=lambda file: file.name)


def _entries(fs: Any, inner: str, url: str) -> list[tuple[Any, dict[str, Any]]]:
    try:
        # not `isdir`, which over http would fetch the file and search it for links
        entry = fs.info(inner)
    except FileNotFoundError:
        # a glob only if there is no such file: names and signed queries may contain the same characters
        if not has_magic(without_query(url)):
            raise
        if url != without_query(url):
            raise UserError(
                f"{redact(url)}: with a query, which may be a signature, a URL leads to one file; name every file, or "
                "use the store's own address (s3://, gs://, abfs://)"
            ) from None
        root, entries = _fixed_part(inner), _globbed(fs, inner)
    else:
        if entry["type"] == "file":
            return [(fs, entry)]
        root, entries = inner, fs.find(inner, detail=True)
    files = (entry for entry in entries.values() if entry["type"] == "file" and not _is_folder_marker(entry))
    return [(fs, entry) for entry in files if not _is_hidden(entry["name"], root)]


def _is_folder_marker(entry: dict[str, Any]) -> bool:
    # consoles of object stores make an empty object for a folder, by its name and a slash
    return entry["name"].endswith("/") and not entry["size"]


def _globbed(fs: Any, pattern: str) -> dict[str, dict[str, Any]]:
    """Return the entries that match, and those in the folders that match."""
    try:
        entries = fs.glob(pattern, detail=True)
    except ValueError as error:  # `**` beside other characters
        raise UserError(f"{redact(pattern)}: {error}") from None
    if "**" not in pattern:
        for folder in [name for name, entry in entries.items() if entry["type"] == "directory"]:
            entries |= fs.find(folder, detail=True)
    return entries


def _fixed_part(pattern: str) -> str:
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first])


def _is_hidden(name: str, root: str) -> bool:
    return any(part.startswith(".") for part in name[len(root) :].split("/"))


def _stored(fs: Any, entry: dict[str, Any], url: str) -> StoredFile:
    if entry.get("size") is None:
        raise UserError(f"{redact(url)}: the server does not tell its size; download it and name the local file")
    # a signed query belongs to a single file, and fsspec keeps it in the name
    found = fs.unstrip_protocol(entry["name"])
    return StoredFile(found, without_query(found), int(entry["size"]))


def _version(fs: Any, path: str) -> str | None:
    info = fs.info(path)
    for name in _VERSION_FIELDS:
        if info.get(name):
            return f"{name}:{info[name]}:{info['size']}"
    return None if path.startswith(("http://", "https://")) else f"ukey:{fs.ukey(path)}"
