"""A file that a user names, and that is never written in place of another: at once, or line by line."""

import os
import tempfile
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import StorageError, UserError
from orchestrator.storage.access import check_root, run_on_url
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage


class NewFile:
    """A file that does not exist yet, at a path or any fsspec URL."""

    def __init__(self, url: str, field: str) -> None:
        """Take the place where it will be.

        Args:
            url: A path or URL.
            field: What a message puts before the URL, such as `output=`.

        Raises:
            UserError: There is something already, which is not replaced, or `url` names no file.
        """
        check_root(url)
        parent, _, self._name = url.rpartition("/")
        self._field = field
        if self._name in ("", ".", ".."):
            raise UserError(f"{field}{redact(url)}: names a folder; add the name of a file")
        self._storage = Storage(parent or ("/" if url.startswith("/") else "."))
        if self._storage.exists(self._name):
            raise self._exists()

    def check_writable(self) -> None:
        """Write and remove a file beside it, before the work.

        Raises:
            StorageError: The store does not take it.
        """
        probe = f".{self._name}.probe"
        self._storage.write_bytes(probe, b"")
        self._storage.remove(probe)

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        return self._storage.url(self._name)

    def write(self, data: bytes) -> None:
        """Write the whole file; nobody sees a part of it.

        Raises:
            UserError: There is one by now, which is not replaced.
            StorageError: The store does not take it.
        """
        if not self._storage.create_bytes(self._name, data):
            raise self._exists()

    def _exists(self) -> UserError:
        return UserError(f"{self._field}{self.url}: exists already, and is not replaced; name another file")


class NewLines:
    """A new file that grows by whole lines, at a path or any fsspec URL.

    A local file has each line from when it is added; a file in a store is written at the end, with the lines that
    there are by then, also where an error or an interrupt ends it.
    """

    def __init__(self, url: str, field: str) -> None:
        """Take the place where it will be; arguments and errors are those of `NewFile`."""
        self._new = NewFile(url, field)
        self._local = self._new._storage.local_path(self._new._name)
        self._file: Any = None
        self._num_bytes = 0

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        return self._new.url

    def __enter__(self) -> Self:
        """Begin the file.

        Raises:
            UserError: There is one by now, which is not replaced.
            StorageError: The store does not take it.
        """
        if self._local is None:
            self._new.check_writable()
            self._file = tempfile.NamedTemporaryFile("w+b", buffering=0, suffix=".jsonl", delete=False)
            return self
        self._file = run_on_url("write", str(self._local), lambda *_: _created(self._local))
        if self._file is None:
            raise self._new._exists()
        return self

    def add(self, lines: str) -> None:
        """Add whole lines.

        Raises:
            StorageError: The disk does not take them; those added before are whole.
        """
        data = lines.encode()
        run_on_url("write", str(self._local or tempfile.gettempdir()), lambda *_: self._append(data))

    def __exit__(self, *error: object) -> None:
        assert self._file is not None
        with self._file:
            os.fsync(self._file.fileno())
            if self._local is not None:
                return
            self._file.seek(0)
            try:
                self._new.write(self._file.read())
            except (StorageError, UserError) as reason:
                # what took long to compute is not lost with the store
                raise type(reason)(f"{reason}; the lines are in {self._file.name}") from None
        os.unlink(self._file.name)

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            # what was written of them is taken away, so that the last line stays whole
            os.ftruncate(self._file.fileno(), self._num_bytes)
            self._file.seek(self._num_bytes)
            raise
        self._num_bytes += len(data)


def _created(path: Path | None) -> Any:
    """Return a new file, opened for writing without a buffer; None if there is one already."""
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return open(path, "xb", buffering=0)
    except FileExistsError:
        return None
