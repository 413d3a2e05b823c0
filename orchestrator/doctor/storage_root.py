"""Whether a storage root supports everything that runs need."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from orchestrator.display.units import size
from orchestrator.doctor.findings import Finding
from orchestrator.errors import StorageError
from orchestrator.storage.store import Storage

LEAST_FREE_BYTES = 10 * 10**9
_OTHER = "choose another storage.root"


def storage_root(root: str) -> Finding:
    """Write, replace, read, list, create and remove a small file below a hidden folder, which is removed afterwards."""
    storage = Storage(root)
    free_bytes = _free_bytes(storage)
    with _probe_folder(storage) as folder:
        problem = _probe(storage, folder)
    if problem:
        return Finding("failure", f"{storage.url()}: {problem}", _OTHER)
    if free_bytes is None:
        return Finding("ok", f"{storage.url()}: written, replaced, read, listed and removed")
    text = f"{storage.url()}: works, {size(free_bytes)} free"
    if free_bytes < LEAST_FREE_BYTES:
        return Finding("warning", text, f"free space there, or {_OTHER}: checkpoints hold 12 bytes for each parameter")
    return Finding("ok", text)


def _probe(storage: Storage, folder: str) -> str:
    """Return what the store did wrong without raising an error; empty if nothing."""
    storage.write_bytes(f"{folder}/probe", b"first")
    storage.write_bytes(f"{folder}/probe", b"second")
    if storage.read_bytes(f"{folder}/probe") != b"second":
        return "a replaced file does not return its new content"
    if storage.create_bytes(f"{folder}/probe", b"third") or storage.read_bytes(f"{folder}/probe") != b"second":
        return "it does not refuse to create a file that exists: two drivers could execute one run"
    if not storage.create_bytes(f"{folder}/created", b"fourth"):
        return "it refuses to create a file that does not exist"
    if storage.list(folder) != ["created", "probe"]:
        return "a listing does not show files that were just written"
    storage.remove(folder)
    return "a removed file still exists" if storage.exists(f"{folder}/probe") else ""


@contextlib.contextmanager
def _probe_folder(storage: Storage) -> Iterator[str]:
    folder = f".doctor-{uuid.uuid4().hex[:8]}"
    path = storage.local_path()
    missing = [parent for parent in (path, *path.parents) if not parent.exists()] if path else []
    try:
        yield folder
    finally:
        # if the store refuses this, too, its first refusal is the one to report
        with contextlib.suppress(StorageError):
            storage.remove(folder)
        _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, until one is not empty: a run may have begun in it."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _free_bytes(storage: Storage) -> int | None:
    """Return the free bytes on the disk of a local root; None for another store."""
    path = storage.local_path()
    if path is None:
        return None
    return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free
