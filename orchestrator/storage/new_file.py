"""A file that a user names and that is written once, whole, and never in place of another."""

from orchestrator.errors import UserError
from orchestrator.storage.access import check_root
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
