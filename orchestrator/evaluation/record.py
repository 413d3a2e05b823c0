"""What evaluations have found about a model, kept beside it or below the storage root.

    evaluation.json
    {"harness/capitals": {"0f3c…": {"metrics": …, "settings": …, "model": …, "created": …}}, …}

The first key says what was measured, the second is the fingerprint of model and settings, so that one evaluation never
replaces another; the same one done again replaces itself.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.artifacts.base_model import model_identity
from orchestrator.artifacts.model_folders import FoundModel
from orchestrator.artifacts.recipe import fingerprint
from orchestrator.errors import RefusedError
from orchestrator.runs.json_files import read_object, write_object
from orchestrator.storage.local import locked
from orchestrator.storage.redaction import redact, without_secrets
from orchestrator.storage.store import Storage

FILE = "evaluation.json"
_FOLDER = "evaluations"
_REMEDY = "move it away, and evaluate again"


@dataclass(frozen=True)
class Evaluation:
    """What was measured, how, and what came out; plain data."""

    subject: str
    """What was measured, as `harness/capitals` or `classification`."""
    settings: Mapping[str, Any]
    """All that decides the figures beside the model: settings, data and versions."""
    metrics: Mapping[str, Any]
    """Figures by name."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else should be known of it and decides nothing, such as the batch size."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Pictures and the like, which are written beside it, by name."""


def record(
    path: str, found: FoundModel, root: Storage, evaluations: Sequence[Evaluation], to: str | None = None
) -> str:
    """Keep evaluations of a model, and return where: a path or a URL.

    They are in `evaluation.json` in the model's folder, or, if that is remote, on a hub or read-only, below
    `evaluations/` in the storage root. A remote storage root has a file for each, as there is no lock there: whatever
    the number of processes, none takes away what another has written.

    Args:
        path: The model as the user named it.
        found: Where it is.
        root: The storage root.
        to: A folder that gets them instead.

    Raises:
        DamagedFileError: There is an `evaluation.json` that is none.
        StorageError: Nothing can be written.
    """
    identity = model_identity(path, found)
    entries = [_entry(redact(path), identity, evaluation) for evaluation in evaluations]
    files = {name: content for evaluation in evaluations for name, content in evaluation.files.items()}
    if to is not None:
        return _merged(Storage(to), "", entries, files)
    beside, name = found.folder.storage, found.folder.name
    if beside.is_local and found.commit is None:
        with suppress(RefusedError):
            return _merged(beside, name, entries, files)
    place = re.sub(r"[^\w.-]", "-", name) or "model"
    name = f"{_FOLDER}/{place}-{fingerprint(identity)[:8]}"
    if root.is_local:
        return _merged(root, name, entries, files)
    _write(root, name, files)
    for subject, number, entry in entries:
        write_object(
            root, f"{name}/{re.sub(r'[^A-Za-z0-9_.-]', '-', subject)}-{number}.json", {subject: {number: entry}}
        )
    return root.url(name)


def _entry(path: str, identity: dict[str, Any], evaluation: Evaluation) -> tuple[str, str, dict[str, Any]]:
    """Return subject, fingerprint and content of an evaluation."""
    content = without_secrets(asdict(replace(evaluation, files=dict.fromkeys(evaluation.files, b""))))
    content["files"] = list(evaluation.files)
    number = fingerprint({"settings": content["settings"], "model": identity})
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return content.pop("subject"), number, {**content, "model": {"path": path, **identity}, "created": created}


def _merged(
    storage: Storage, folder: str, entries: Sequence[tuple[str, str, dict[str, Any]]], files: Mapping[str, bytes]
) -> str:
    """Add entries to a file in one write, on a local disk while no other process does."""
    name = f"{folder}/{FILE}"
    if not storage.exists(folder):
        storage.write_bytes(f"{folder}/.keep", b"")
        storage.remove(f"{folder}/.keep")
    _write(storage, folder, files)
    place = storage.local_path(folder)
    with nullcontext() if place is None else locked(place):
        content = read_object(storage, name, _REMEDY) or {}
        for subject, number, entry in entries:
            content[subject] = {**content.get(subject, {}), number: entry}
        write_object(storage, name, content)
    return storage.url(name)


def _write(storage: Storage, folder: str, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        storage.write_bytes(f"{folder}/{name}", content)
