"""Folders and files below one root, on a local disk or in any store with a URL."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import StorageError
from orchestrator.storage.access import (
    check_root,
    check_url,
    is_local,
    open_url,
    path_of,
    protocol_of,
    run_on_url,
)
from orchestrator.storage.errors import ExistsError, NotFoundError
from orchestrator.storage.local import copy_file, create_file, fill_from_file, write_file
from orchestrator.storage.redaction import redact

T = TypeVar("T")

_STORES_WITHOUT_FOLDERS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory")


class Storage:
    """A root folder, local or remote; names below it are '/'-separated paths.

    Local writes are atomic: a temporary file beside the target, fsync, rename, fsync of the folder. Writes to
    object stores are atomic by nature. Actions are retried after transient errors (timeouts, throttling, 5xx, lost
    connections). It holds no connection: it can be pickled, and used after a fork and by threads.
    """

    def __init__(self, root: str) -> None:
        """Set the root; nothing is opened yet.

        Args:
            root: a folder, made absolute here so that workers in another folder agree, or an fsspec URL.

        Raises:
            UserError: `root` holds a password, names a kind of store that fsspec does not know, or can be no folder.
        """
        check_url(root)
        self.is_local = is_local(root)
        self._protocol = protocol_of(root)
        self._root = os.path.abspath(os.path.expanduser(path_of(root))) if self.is_local else root.rstrip("/")
        check_root(self._root)

    def __repr__(self) -> str:
        return f"Storage({redact(self._root)!r})"

    @property
    def is_shared(self) -> bool:
        """Whether other processes see the same files; those in memory they do not."""
        return self._protocol != "memory"

    def url(self, name: str = "") -> str:
        """Return the absolute path or the URL of `name`, with any credential replaced by `***`."""
        return redact(self._join(name))

    def local_path(self, name: str = "") -> Path | None:
        """Return the path of `name`, or None if the store is not local."""
        return Path(self._join(name)) if self.is_local else None

    def exists(self, name: str) -> bool:
        """Return whether `name` is a file or a folder with something in it."""
        try:
            self._run("look at", name, lambda fs, path: fs.info(path))
        except NotFoundError:
            return False
        return True

    def num_bytes(self, name: str) -> int:
        """Return the size of the file `name`."""
        return int(self._run("look at", name, lambda fs, path: fs.info(path))["size"])

    def bytes_below(self, name: str) -> int:
        """Return the size of all files below the folder `name`; 0 if it is missing."""
        try:
            found = self._run("list", name, lambda fs, path: fs.find(path, detail=True))
        except NotFoundError:
            return 0
        return sum(int(entry["size"] or 0) for entry in found.values())

    def modified_seconds(self, name: str) -> float:
        """Return when the file `name` was last changed, in seconds since 1970."""
        return self._run("look at", name, lambda fs, path: fs.modified(path)).timestamp()

    def list(self, name: str = "", hidden: bool = False, folders_only: bool = False) -> list[str]:
        """Return the sorted names of the children of folder `name`; empty if it is missing or a file.

        Args:
            hidden: include names that start with a dot, such as staging folders.
            folders_only: leave files out.
        """
        try:
            paths = self._run("list", name, lambda fs, path: _children(fs, path, folders_only))
        except NotFoundError:
            return []
        names = {path.rstrip("/").rsplit("/", 1)[-1] for path in paths}
        return sorted(child for child in names if hidden or not child.startswith("."))

    def read_bytes(self, name: str) -> bytes:
        """Return the whole file `name`.

        Raises:
            NotFoundError: it does not exist.
        """
        return self._run("read", name, lambda fs, path: fs.cat_file(path))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return bytes `[start, stop)` of the file `name`.

        Raises:
            StorageError: the file ends before `stop`.
        """
        if start == stop:
            return b""
        data = self._run("read", name, lambda fs, path: fs.cat_file(path, start=start, end=stop))
        if len(data) != stop - start:
            raise StorageError(f"cannot read {self.url(name)}: it ends before byte {stop}")
        return data

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` of the file `name`.

        Raises:
            StorageError: the file ends before the buffer is full.
        """
        if not self.is_local:
            buffer[:] = self.read_range(name, start, start + len(buffer))
        elif self._run("read", name, lambda _, path: fill_from_file(Path(path), start, buffer)) < len(buffer):
            raise StorageError(f"cannot read {self.url(name)}: it ends before byte {start + len(buffer)}")

    def open_read(self, name: str) -> BufferedReader:
        """Return the file `name` for reading; after a lost connection it is reopened at the same byte."""
        return open_url(self._join(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write `data` to the file `name`, replacing an existing file."""
        if self.is_local:
            self._run("write", name, lambda _, path: write_file(Path(path), data))
        else:
            self._run("write", name, lambda fs, path: (self._make_parent(fs, path), fs.pipe_file(path, data)))

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Write `data` to the file `name` unless it exists; of several writers exactly one gets True."""
        try:
            if self.is_local:
                self._run("write", name, lambda _, path: create_file(Path(path), data))
            else:
                self._run("write", name, lambda fs, path: self._create(fs, path, data))
        except ExistsError:
            return False
        return True

    def upload(self, local: Path, name: str) -> None:
        """Copy a local file, or each file below a local folder, to `name`."""
        pairs = [(file, f"{name}/{relative}" if relative else name) for file, relative in _files_below(local)]
        if self.is_local:
            for file, target in pairs:
                self._run("write", target, lambda _, path, file=file: copy_file(file, Path(path)))
        else:
            self._run("write", name, lambda fs, _: self._put(fs, pairs))

    def download(self, name: str, local: Path) -> None:
        """Copy the file `name`, or each file below the folder `name`, to `local`."""
        self._run("read", name, lambda fs, path: _get(fs, path, local))

    def remove(self, name: str) -> None:
        """Remove the file or folder `name` with all its content; it may be missing."""
        try:
            self._run("remove", name, lambda fs, path: fs.rm(path, recursive=True))
        except NotFoundError:
            return

    def remove_if_empty(self, name: str) -> None:
        """Remove a local folder that has nothing in it; object stores have no such folders."""
        if self.is_local:
            with suppress(OSError):
                Path(self._join(name)).rmdir()

    def _join(self, name: str) -> str:
        name = name.strip("/")
        if ".." in name.split("/"):
            raise StorageError(f"the name {name!r} leads out of {redact(self._root)}")
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def _run(self, verb: str, name: str, action: Callable[[Any, str], T]) -> T:
        return run_on_url(verb, self._join(name), action)

    def _create(self, fs: Any, path: str, data: bytes) -> None:
        self._make_parent(fs, path)
        fs.pipe_file(path, data, mode="create")

    def _put(self, fs: Any, pairs: Sequence[tuple[Path, str]]) -> None:
        targets = [fs._strip_protocol(self._join(target)) for _, target in pairs]
        for target in targets:
            self._make_parent(fs, target)
        fs.put([str(file) for file, _ in pairs], targets)

    def _make_parent(self, fs: Any, path: str) -> None:
        # On an object store this would try to create the bucket.
        if self._protocol not in _STORES_WITHOUT_FOLDERS:
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)


def _files_below(local: Path) -> Iterator[tuple[Path, str]]:
    if local.is_file():
        yield local, ""
    else:
        for file in sorted(local.rglob("*")):
            if file.is_file():
                yield file, file.relative_to(local).as_posix()


def _children(fs: Any, path: str, folders_only: bool) -> list[str]:
    # details cost a local store a stat of each file; a link to a folder is not of type "file"
    entries = fs.ls(path, detail=folders_only)
    names = [entry["name"] for entry in entries if entry["type"] != "file"] if folders_only else entries
    return [entry for entry in names if entry.rstrip("/") != path.rstrip("/")]


def _get(fs: Any, path: str, local: Path) -> None:
    if fs.isfile(path):
        local.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(path, str(local))
        return
    sources = fs.find(path)
    if not sources:
        raise FileNotFoundError(path)
    targets = [local / source[len(path.rstrip("/")) + 1 :] for source in sources]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    fs.get(sources, [str(target) for target in targets])
