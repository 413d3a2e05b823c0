"""evaluation.json: what has been measured of a model. It lies in the model's folder, and grows with each evaluation.

    {"KEY": {"metrics": {"classification/accuracy": 0.87, …}, …}, …}

A key says what was measured: the same evaluation again replaces its entry, and all others stay.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from orchestrator.artifacts.model_folders import FoundModel
from orchestrator.errors import StorageError
from orchestrator.runs.json_files import read_object, write_object
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

FILE = "evaluation.json"
_FOLDER = "evaluations"
_CLAIM, _PROBE = f".{FILE}.claim", f".{FILE}.probe"
_STALE_SECONDS = 60.0
"""A claim as old as this was left by a process that is gone: one is held for as long as a small file is written."""
_WAIT_SECONDS = 120.0


class EvaluationRecord:
    """The file of one model. Processes that write at the same time take turns, so that no entry is lost."""

    def __init__(self, found: FoundModel, storage: Storage) -> None:
        """Find the place: the model's folder, or one of its own below evaluations/ where that cannot be written.

        Args:
            found: The model, as it was named.
            storage: The storage root.

        Raises:
            DamagedFileError: There is a file which cannot be read.
            StorageError: Neither place can be written.
        """
        # a copy from the hub is shared by all that use it, and others are right to expect it as it was published
        places = [] if found.commit else [(found.folder.storage, found.folder.name)]
        places.append((storage, f"{_FOLDER}/{_folder_name(found.folder.url)}"))
        for self._storage, self._folder in places[:-1]:
            if self._can_be_written():
                break
        else:
            self._storage, self._folder = places[-1]
        self._read()

    @property
    def url(self) -> str:
        """Where the file is, for messages."""
        return self._storage.url(f"{self._folder}/{FILE}")

    def add(self, key: str, entry: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None) -> None:
        """Write an entry, in place of one of the same key.

        Args:
            key: What was measured.
            entry: Plain data; the time of writing is added.
            pictures: Files to write beside it, by name.
        """
        for name, content in (pictures or {}).items():
            self._storage.write_bytes(f"{self._folder}/{name}", content)
        written = {**entry, "written": datetime.now(UTC).isoformat(timespec="seconds")}
        with self._claimed():
            write_object(self._storage, f"{self._folder}/{FILE}", {**self._read(), key: written})

    def _read(self) -> dict[str, Any]:
        remedy = "restore or remove it, and evaluate again"
        return read_object(self._storage, f"{self._folder}/{FILE}", remedy) or {}

    def _can_be_written(self) -> bool:
        probe = f"{self._folder}/{_PROBE}"
        try:
            self._storage.write_bytes(probe, b"")
            self._storage.remove(probe)
        except StorageError:
            return False
        return True

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        claim, deadline = f"{self._folder}/{_CLAIM}", time.monotonic() + _WAIT_SECONDS
        while not self._storage.create_bytes(claim, b""):
            with contextlib.suppress(NotFoundError):  # it has just been given up
                if time.time() - self._storage.modified_seconds(claim) > _STALE_SECONDS:
                    self._storage.remove(claim)
            if time.monotonic() > deadline:
                raise StorageError(f"{self._storage.url(claim)}: another process holds it; remove it if none is there")
            time.sleep(0.05)
        try:
            yield
        finally:
            self._storage.remove(claim)


def _folder_name(url: str) -> str:
    """Return a name for a model's results: readable, and another one for another model."""
    readable = "-".join(re.sub(r"[^\w.-]+", "-", part) for part in url.rstrip("/").split("/")[-2:])
    return f"{readable[-80:].strip('.-')}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
