"""Whether a storage root does what runs ask of it."""

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
    """Write, replace, read, list, create and remove a small file below a hidden folder, which is gone afterwards."""
    storage = Storage(root)
    free_bytes = _free_bytes(storage)
    with _probe_folder(storage) as folder:
        trouble = _tried(storage, folder)
    if trouble:
        return Finding("failure", f"{storage.url()}: {trouble}", _OTHER)
    if free_bytes is None:
        return Finding("ok", f"{storage.url()}: written, replaced, read, listed and removed")
    text = f"{storage.url()}: works, {size(free_bytes)} free"
    if free_bytes < LEAST_FREE_BYTES:
        return Finding("warning", text, f"free space there, or {_OTHER}: checkpoints hold 12 bytes for each parameter")
    return Finding("ok", text)


def _tried(storage: Storage, folder: str) -> str:
    """Return what the store did wrong without saying so; empty if it did all well."""
    storage.write_bytes(f"{folder}/probe", b"first")
    storage.write_bytes(f"{folder}/probe", b"second")
    if storage.read_bytes(f"{folder}/probe") != b"second":
        return "what was written over a file is not what is read from it"
    if storage.create_bytes(f"{folder}/probe", b"third") or storage.read_bytes(f"{folder}/probe") != b"second":
        return "it does not refuse to create a file that is there: two drivers could take one run"
    if not storage.create_bytes(f"{folder}/created", b"fourth"):
        return "it refuses to create a file that is not there"
    if storage.list(folder) != ["created", "probe"]:
        return "a listing does not show what was just written"
    storage.remove(folder)
    return "what was removed is still there" if storage.exists(f"{folder}/probe") else ""


@contextlib.contextmanager
def _probe_folder(storage: Storage) -> Iterator[str]:
    folder = f".doctor-{uuid.uuid4().hex[:8]}"
    path = storage.local_path()
    missing = [place for place in (path, *path.parents) if not place.exists()] if path else []
    try:
        yield folder
    finally:
        # of a store that refuses this, too, the first refusal is told
        with contextlib.suppress(StorageError):
            storage.remove(folder)
        _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, until one holds something: a run may have begun in it."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _free_bytes(storage: Storage) -> int | None:
    """Return what is free on the disk of a local root; None for another store."""
    path = storage.local_path()
    if path is None:
        return None
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free
