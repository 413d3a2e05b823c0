"""A file that is written once, whole, at the end of long work."""

from orchestrator.errors import UserError
from orchestrator.storage.access import check_root
from orchestrator.storage.store import Storage


class NewFile:
    """A file that does not exist yet, at a path or any fsspec URL."""

    def __init__(self, url: str, field: str) -> None:
        """Take the place where it will be.

        Args:
            url: A path or URL.
            field: The setting that names it, for messages.

        Raises:
            UserError: There is something already, which is not replaced.
        """
        check_root(url)
        parent, _, self._name = url.rpartition("/")
        self._storage = Storage(parent or ("/" if url.startswith("/") else "."))
        if self._storage.exists(self._name):
            raise UserError(f"{field}={self.url}: exists already, and is not replaced; remove it or name another file")

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
        """Write the whole file; nobody sees a part of it."""
        self._storage.write_bytes(self._name, data)
