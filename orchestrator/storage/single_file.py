"""One file that a user names, at a path or any fsspec URL."""

from orchestrator.errors import UserError
from orchestrator.storage.access import check_root
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage


def create_file_at(url: str, data: bytes) -> str:
    """Write a file that does not exist yet, whole, and return its absolute path or URL, for messages.

    Raises:
        UserError: There is something already, which is not replaced, or `url` names no file.
        StorageError: The store does not take it.
    """
    check_root(url)
    parent, _, name = url.rpartition("/")
    if name in ("", ".", ".."):
        raise UserError(f"{redact(url)}: names a folder; add the name of a file")
    storage = Storage(parent or ("/" if url.startswith("/") else "."))
    if not storage.create_bytes(name, data):
        raise UserError(f"{storage.url(name)}: exists already, and is not replaced; name another file")
    return storage.url(name)
