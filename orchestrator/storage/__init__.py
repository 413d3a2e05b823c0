"""The only speaker of fsspec: files on a local disk or in any store with a URL."""

from orchestrator.redaction import redact
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.sources import StoredFile, find_files
from orchestrator.storage.store import Storage

__all__ = ["NotFoundError", "Storage", "StoredFile", "find_files", "redact"]
