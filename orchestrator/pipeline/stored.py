"""The stages of a pipeline as they are stored, whatever its configuration is now."""

from itertools import chain
from typing import Any

from orchestrator.artifacts.recipe import fingerprint
from orchestrator.checkpoints.attempt import STAGES
from orchestrator.display.stages import StoredRow
from orchestrator.runs import lease
from orchestrator.runs.stages import attempt_folders, attempts, read_begun, read_done
from orchestrator.storage.store import Storage


def stored_stages(storage: Storage, pipeline: str) -> list[StoredRow]:
    """Return every attempt at the stages of a pipeline, the oldest first; none where there is no such pipeline."""
    folders = chain.from_iterable(attempt_folders(storage, pipeline).values())
    return [_row(storage, found) for found in reversed(attempts(storage, folders))]


def _row(storage: Storage, found: dict[str, Any]) -> StoredRow:
    key = fingerprint(found["recipe"])
    record, begun = read_done(storage, key), read_begun(storage, key)
    is_done = record is not None and record["path"] == found["path"]
    runs = begun is not None and begun["path"] == found["path"] and lease.holder(storage, key, STAGES) is not None
    state = "done" if is_done else "running" if runs else "replaced" if record else "interrupted"
    seconds = record.get("seconds") if record is not None and is_done else None
    return StoredRow(found["stage"], found["recipe"]["command"], state, seconds, found["time"], found["path"])
