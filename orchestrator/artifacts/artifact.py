"""Directories that count once they are committed: a manifest of sizes and digests, and one last write (invariant 3).

    <name>/…                the files
    <name>/manifest.json    {"files": {file: {"num_bytes": …, "xxh3_128": …}}, …extra}
    <name>/COMMITTED        the digest of manifest.json

A file that the manifest does not list is never read, so it does no harm.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from orchestrator.artifacts.staging import staging_folder
from orchestrator.errors import ArtifactError
from orchestrator.storage.errors import NotFoundError, explain
from orchestrator.storage.local import sync
from orchestrator.storage.store import Storage

MANIFEST = "manifest.json"
COMMITTED = "COMMITTED"

_NUM_READERS = 4


@dataclass(frozen=True)
class FileEntry:
    """Size and content of one file, as the manifest lists it."""

    num_bytes: int
    xxh3_128: str
    """Hexadecimal digest; fast and for accidents, no defence against a forger."""


def digest(stream: BufferedReader) -> FileEntry:
    """Size and digest of `stream`, which is at its start, read piece by piece."""
    state = hashlib.file_digest(stream, xxhash.xxh3_128)
    return FileEntry(stream.tell(), state.hexdigest())


def digest_bytes(data: bytes) -> FileEntry:
    """Size and digest of `data`."""
    return FileEntry(len(data), xxhash.xxh3_128_hexdigest(data))


def digest_file(path: Path) -> FileEntry:
    """Size and digest of a local file."""
    with open(path, "rb") as file:
        return digest(file)


def digest_folder(folder: Path) -> dict[str, FileEntry]:
    """Entry of each file below a local `folder`, by its '/'-separated name; our own two files left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return {
        name: digest_file(path) for name, path in zip(names, paths, strict=True) if name not in (MANIFEST, COMMITTED)
    }


def publish(storage: Storage, local_folder: Path, name: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Make a local folder the committed artifact `name`, and return its manifest.

    An artifact that is committed already stays as it is, and the folder is not used. In a local store the folder is
    moved, not copied (across file systems it is copied): do not use it afterwards.

    Args:
        local_folder: a finished folder, from `staging_folder`.
        extra: further fields of the manifest.
    """
    if is_committed(storage, name):
        return read_manifest(storage, name)
    files = digest_folder(local_folder)
    if storage.is_local:
        return _publish_by_rename(storage, local_folder, name, files, extra)
    storage.remove(name)
    for file in files:
        _check_name(file)
    storage.upload(local_folder, name)
    return commit(storage, name, files, extra)


def commit(storage: Storage, name: str, files: Mapping[str, FileEntry], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Commit files that are already in place: write the manifest, then COMMITTED; return the manifest.

    Args:
        files: every file of the artifact by its name below `name`; other files there are never read.
        extra: further fields of the manifest.
    """
    write_manifest(storage, name, files, extra)
    return write_commit(storage, name)


def write_manifest(
    storage: Storage, name: str, files: Mapping[str, FileEntry], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the manifest of artifact `name`, which is valid only after `write_commit`."""
    for file in files:
        _check_name(file)
    manifest = {**extra, "files": {file: asdict(files[file]) for file in sorted(files)}}
    storage.write_bytes(f"{name}/{MANIFEST}", (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def write_commit(storage: Storage, name: str) -> dict[str, Any]:
    """Commit artifact `name`, whose files and manifest are in place."""
    data = storage.read_bytes(f"{name}/{MANIFEST}")
    storage.write_bytes(f"{name}/{COMMITTED}", f"{digest_bytes(data).xxh3_128}\n".encode())
    return json.loads(data)


def is_committed(storage: Storage, name: str) -> bool:
    """Return whether `name` has an intact manifest and its commit; the files themselves are not checked."""
    try:
        read_manifest(storage, name)
    except ArtifactError:
        return False
    return True


def read_manifest(storage: Storage, name: str) -> dict[str, Any]:
    """Return the manifest of artifact `name`; its files are not checked.

    Raises:
        ArtifactError: it is not committed, or the manifest is damaged or names a file outside of the artifact.
    """
    url = storage.url(name)
    try:
        expected = storage.read_bytes(f"{name}/{COMMITTED}").decode(errors="replace").strip()
    except NotFoundError:
        raise ArtifactError(f"{url}: not committed ({COMMITTED} is missing)") from None
    try:
        data = storage.read_bytes(f"{name}/{MANIFEST}")
    except NotFoundError:
        raise ArtifactError(f"{url}: {MANIFEST} is missing") from None
    if digest_bytes(data).xxh3_128 != expected:
        raise ArtifactError(f"{url}: {MANIFEST} is damaged (its digest is not the one in {COMMITTED})")
    return _parsed(data, url)


def verify(storage: Storage, name: str) -> dict[str, Any]:
    """Checks every file of artifact `name` against its size and digest, and returns the manifest.

    Raises:
        ArtifactError: names the first file, by name, that is wrong, and what is wrong with it.
    """
    manifest = read_manifest(storage, name)
    entries = file_entries(manifest)
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for _ in pool.map(lambda file: _verify_file(storage, name, file, entries[file]), entries):
            pass
    return manifest


def file_entries(manifest: Mapping[str, Any]) -> dict[str, FileEntry]:
    """Return the entry of each file of a manifest, by name."""
    return {file: FileEntry(**entry) for file, entry in manifest["files"].items()}


def local_copy(storage: Storage, name: str, cache: Path) -> Path:
    """A local folder that holds the verified artifact `name`: the artifact itself in a local store, else a copy.

    Copies are kept below `cache` under the manifest's digest, so that another process or run finds them.

    Raises:
        ArtifactError: the artifact is not committed or damaged.
    """
    place = storage.local_path(name)
    if place is not None:
        verify(storage, name)
        return place
    read_manifest(storage, name)
    key = storage.read_bytes(f"{name}/{COMMITTED}").decode().strip()
    kept, copy = Storage(str(cache)), f"{PurePosixPath(name).name}-{key[:16]}"
    if is_committed(kept, copy):
        with suppress(ArtifactError):
            verify(kept, copy)
            return cache / copy
        remove(kept, copy)
    _fetch(storage, name, kept, copy)
    return cache / copy


def remove(storage: Storage, name: str) -> None:
    """Remove artifact `name`, its commit first, so that a partly removed artifact is never read."""
    storage.remove(f"{name}/{COMMITTED}")
    storage.remove(name)


def _publish_by_rename(
    storage: Storage, folder: Path, name: str, files: Mapping[str, FileEntry], extra: Mapping[str, Any]
) -> dict[str, Any]:
    place = storage.local_path(name)
    assert place is not None
    manifest = commit(Storage(str(folder)), "", files, extra)
    try:
        _sync_folder(folder)
        storage.remove(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        _move(storage, folder, name, place)
        sync(place.parent)
    except OSError as error:
        # Another process was faster: both made it from the same recipe, and its own is committed.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and is_committed(storage, name):
            return read_manifest(storage, name)
        raise explain(error, "write", storage.url(name)) from None
    return manifest


def _move(storage: Storage, folder: Path, name: str, place: Path) -> None:
    try:
        os.rename(folder, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with staging_folder(storage, name) as beside:
            shutil.copytree(folder, beside, dirs_exist_ok=True)
            _sync_folder(beside)
            os.rename(beside, place)


def _sync_folder(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _fetch(storage: Storage, name: str, kept: Storage, copy: str) -> None:
    manifest = read_manifest(storage, name)
    entries = file_entries(manifest)
    with staging_folder(kept, copy) as folder:
        for file in entries:
            storage.download(f"{name}/{file}", folder / file)
        found = digest_folder(folder)
        for file, entry in entries.items():
            _compare(storage.url(name), file, found[file], entry)
        publish(kept, folder, copy, {field: value for field, value in manifest.items() if field != "files"})


def _verify_file(storage: Storage, name: str, file: str, entry: FileEntry) -> None:
    url = storage.url(name)
    try:
        num_bytes = storage.num_bytes(f"{name}/{file}")
        if num_bytes != entry.num_bytes:
            raise ArtifactError(f"{url}: {file} has {num_bytes} bytes; the manifest says {entry.num_bytes}")
        with storage.open_read(f"{name}/{file}") as stream:
            _compare(url, file, digest(stream), entry)
    except NotFoundError:
        raise ArtifactError(f"{url}: {file} is missing") from None


def _compare(url: str, file: str, found: FileEntry, entry: FileEntry) -> None:
    if found.num_bytes != entry.num_bytes:
        raise ArtifactError(f"{url}: {file} has {found.num_bytes} bytes; the manifest says {entry.num_bytes}")
    if found.xxh3_128 != entry.xxh3_128:
        raise ArtifactError(f"{url}: {file} is damaged (its digest is not the one in the manifest)")


def _parsed(data: bytes, url: str) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        for file in file_entries(manifest):
            _check_name(file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{url}: {MANIFEST} is not a manifest ({error})") from None
    except ArtifactError as error:
        raise ArtifactError(f"{url}: {error}") from None
    return manifest


def _check_name(file: str) -> None:
    """Raise ArtifactError for a name that could lead out of the artifact, on any system."""
    parts = file.split("/")
    if not file or "\\" in file or "\0" in file or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise ArtifactError(f"{MANIFEST} names {file!r}, which leads out of the artifact")
