"""Directories that count once they are committed: a manifest of sizes and digests, and one last write (invariant 3).

    <name>/…                the files
    <name>/manifest.json    {"files": {file: {"num_bytes": …, "xxh3_128": …}}, …extra}
    <name>/COMMITTED        the digest of manifest.json

A file that the manifest does not list is never read, so it does no harm.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.artifacts.digests import FileEntry, digest, digest_bytes, digest_file
from orchestrator.artifacts.node_cache import fetch_file
from orchestrator.artifacts.staging import STAGING_PREFIX, staging_folder
from orchestrator.errors import ArtifactError
from orchestrator.storage.errors import NotFoundError, explain
from orchestrator.storage.local import locked, sync
from orchestrator.storage.store import Storage

MANIFEST = "manifest.json"
COMMITTED = "COMMITTED"

_NUM_READERS = 4


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
    moved, not copied (across file systems it is copied): do not use it afterwards. Several processes may publish the
    same artifact at the same time: the first one commits it, and the others find it committed.

    Args:
        local_folder: a finished folder, from `staging_folder`.
        extra: further fields of the manifest.

    Raises:
        ArtifactError: another process has committed other files under this name, which the same recipe never makes.
    """
    if is_committed(storage, name):
        return read_manifest(storage, name)
    files = digest_folder(local_folder)
    if storage.is_local:
        return _publish_by_rename(storage, local_folder, name, files, extra)
    return _publish_by_upload(storage, local_folder, name, files, extra)


def replace(storage: Storage, local_folder: Path, name: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Publish a local folder in place of the committed artifact `name`, which is whole until the last moment.

    The arguments are those of `publish`. Who reads the old one from a local store is not disturbed.
    """
    files = digest_folder(local_folder)
    if not storage.is_local:
        storage.upload(local_folder, name)
        return commit(storage, name, files, extra)
    place = storage.local_path(name)
    assert place is not None
    manifest = commit(Storage(str(local_folder)), "", files, extra)
    with _explained(storage, name):
        _sync_folder(local_folder)
        with locked(place.parent), _set_aside(place):
            _move(storage, local_folder, name, place)
        sync(place.parent)
    return manifest


def commit(storage: Storage, name: str, files: Mapping[str, FileEntry], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Commit files that are already in place: write the manifest, then COMMITTED; return the manifest.

    Args:
        files: every file of the artifact by its name below `name`; other files there are never read.
        extra: further fields of the manifest.
    """
    manifest = {**extra, "files": listed(files)}
    write_manifest(storage, name, (json.dumps(manifest, indent=1) + "\n").encode())
    write_commit(storage, name)
    return manifest


def listed(files: Mapping[str, FileEntry]) -> dict[str, Any]:
    """Return files as a manifest lists them."""
    for file in files:
        _check_name(file)
    return {file: asdict(files[file]) for file in sorted(files)}


def write_manifest(storage: Storage, name: str, manifest: bytes) -> None:
    """Write the manifest of artifact `name`, which is valid only after `write_commit`."""
    storage.write_bytes(f"{name}/{MANIFEST}", manifest)


def write_commit(storage: Storage, name: str) -> None:
    """Commit artifact `name`, whose files and manifest are in place."""
    data = storage.read_bytes(f"{name}/{MANIFEST}")
    storage.write_bytes(f"{name}/{COMMITTED}", f"{digest_bytes(data).xxh3_128}\n".encode())


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


def verify_sizes(storage: Storage, name: str) -> None:
    """Checks that every file of artifact `name` is there and has its size; no content is read.

    Raises:
        ArtifactError: names the first file, by name, that is wrong, and what is wrong with it.
    """
    entries = file_entries(read_manifest(storage, name))
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for _ in pool.map(lambda file: _verify_size(storage, name, file, entries[file]), entries):
            pass


def file_entries(manifest: Mapping[str, Any]) -> dict[str, FileEntry]:
    """Return the entry of each file of a manifest, by name."""
    return {file: FileEntry(**entry) for file, entry in manifest["files"].items()}


def local_copy(storage: Storage, name: str, cache: Path, needs: Callable[[str], bool] = lambda _: True) -> Path:
    """A local folder that holds the verified artifact `name`: the artifact itself in a local store, else a copy.

    Copies are kept below `cache` under the manifest's digest, so that other processes and runs find them.

    Args:
        needs: Returns whether a file, by its name, is needed; others are neither verified nor copied.

    Raises:
        ArtifactError: the artifact is not committed or damaged.
    """
    entries = {file: entry for file, entry in file_entries(read_manifest(storage, name)).items() if needs(file)}
    place = storage.local_path(name)
    folder = cache / copy_name(storage, name) if place is None else place

    def make_ready(file: str) -> None:
        if place is None:
            fetch_file(storage, f"{name}/{file}", entries[file], folder / file)
        else:
            _verify_file(storage, name, file, entries[file])

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for _ in pool.map(make_ready, entries):
            pass
    return folder


def copy_name(storage: Storage, name: str) -> str:
    """Return the name of the folder for copies of an artifact: another one for another content."""
    return f"{PurePosixPath(name).name}-{manifest_digest(storage, name)[:16]}"


def content(storage: Storage, name: str) -> dict[str, Any]:
    """Return what identifies a committed artifact's content: its manifest's digest, number and size of its files."""
    files = file_entries(read_manifest(storage, name)).values()
    return {
        "manifest_xxh3_128": manifest_digest(storage, name),
        "num_files": len(files),
        "num_bytes": sum(entry.num_bytes for entry in files),
    }


def manifest_digest(storage: Storage, name: str) -> str:
    """Return the digest of a committed artifact's manifest, which changes with any of its files."""
    return storage.read_bytes(f"{name}/{COMMITTED}").decode().strip()


def remove(storage: Storage, name: str) -> None:
    """Remove artifact `name`, its commit first, so that a partly removed artifact is never read."""
    storage.remove(f"{name}/{COMMITTED}")
    storage.remove(name)


def _publish_by_upload(
    storage: Storage, folder: Path, name: str, files: Mapping[str, FileEntry], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Upload over files that another process may be uploading as well: the same recipe makes the same bytes."""
    for file in files:
        _check_name(file)
    if not is_committed(storage, name):
        storage.upload(folder, name)
    if not is_committed(storage, name):
        return commit(storage, name, files, extra)
    manifest = read_manifest(storage, name)
    if file_entries(manifest) != files:
        raise ArtifactError(f"{storage.url(name)}: another process has committed other files made from the same recipe")
    return manifest


def _publish_by_rename(
    storage: Storage, folder: Path, name: str, files: Mapping[str, FileEntry], extra: Mapping[str, Any]
) -> dict[str, Any]:
    place = storage.local_path(name)
    assert place is not None
    manifest = commit(Storage(str(folder)), "", files, extra)
    with _explained(storage, name):
        _sync_folder(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not _is_moved(storage, folder, name, place):
            with locked(place.parent):
                if is_committed(storage, name):
                    return read_manifest(storage, name)
                with _set_aside(place):
                    if not _is_moved(storage, folder, name, place):
                        return read_manifest(storage, name)  # another publisher has used the moment
        sync(place.parent)
    return manifest


def _is_moved(storage: Storage, folder: Path, name: str, place: Path) -> bool:
    """Move the folder to its place; return False if something is there: a commit, or what an interruption left."""
    try:
        _move(storage, folder, name, place)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


@contextmanager
def _set_aside(place: Path) -> Iterator[None]:
    """Rename what is at `place`, and remove it afterwards; only while the parent folder is locked."""
    aside = place.with_name(f"{STAGING_PREFIX}{place.name}-{uuid.uuid4().hex[:8]}")
    os.rename(place, aside)
    yield
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _explained(storage: Storage, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, "write", storage.url(name)) from None


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


def _verify_file(storage: Storage, name: str, file: str, entry: FileEntry) -> None:
    _verify_size(storage, name, file, entry)
    with storage.open_read(f"{name}/{file}") as stream:
        entry.check(digest(stream), f"{storage.url(name)}: {file}")


def _verify_size(storage: Storage, name: str, file: str, entry: FileEntry) -> None:
    try:
        num_bytes = storage.num_bytes(f"{name}/{file}")
    except NotFoundError:
        raise ArtifactError(f"{storage.url(name)}: {file} is missing") from None
    entry.check(FileEntry(num_bytes, entry.xxh3_128), f"{storage.url(name)}: {file}")


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
