"""What is stored of the stages of pipelines: who has begun one, whether it is done, and the recipe of each attempt.

stages/FINGERPRINT/begun.json          {"path", "pipeline", "stage", "inputs", "time"}
stages/FINGERPRINT/done.json           {"path", "command", "recipe", "result": {"name", "digest"}, "inputs", …}
runs/PIPELINE/STAGE-FINGERPRINT/stage.json    {"stage", "recipe", "time"}
runs/PIPELINE/stages.json              {"stages": {stage: fingerprint}}: what the pipeline has asked for last
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.checkpoints.attempt import STAGES
from orchestrator.errors import DamagedFileError
from orchestrator.runs.json_files import read_object, write_object
from orchestrator.storage.store import Storage

STAGE, BEGUN, DONE, CURRENT = "stage.json", "begun.json", "done.json", "stages.json"
NUM_READERS = 8


def claim(fingerprint: str) -> str:
    """Return the folder that says who runs a stage and whether it is done."""
    return f"{STAGES}/{fingerprint}"


def read_begun(storage: Storage, fingerprint: str) -> dict[str, Any] | None:
    """Return where a stage was begun last; None if it never was, or nobody can tell."""
    return _read(storage, f"{claim(fingerprint)}/{BEGUN}", ("path", "inputs"))


def read_done(storage: Storage, fingerprint: str) -> dict[str, Any] | None:
    """Return the record of a stage that was done; None if there is none, or it is damaged."""
    return _read(storage, f"{claim(fingerprint)}/{DONE}", ("path", "recipe", "result", "inputs"))


def read_attempt(storage: Storage, path: str) -> dict[str, Any] | None:
    """Return stage, recipe, time and path of the attempt in a folder; None if there is none, or it is damaged."""
    found = _read(storage, f"{path}/{STAGE}", ("stage", "recipe", "time"))
    return found and {**found, "path": path}


def attempts(storage: Storage, pipeline: str, stage: str | None = None) -> list[dict[str, Any]]:
    """Return every attempt at a stage, or at any, in a pipeline, the newest first: stage, path, recipe and time."""
    folder = f"runs/{pipeline}"
    own = re.compile(rf"{'.+' if stage is None else re.escape(stage)}-[0-9a-f]{{8}}(-\d+)?")
    names = [name for name in storage.list(folder, folders_only=True) if own.fullmatch(name)]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = [one for one in pool.map(lambda name: read_attempt(storage, f"{folder}/{name}"), names) if one]
    return sorted(found, key=lambda one: -one["time"])


def read_current(storage: Storage, pipeline: str) -> dict[str, str]:
    """Return the fingerprint of each stage as the pipeline has asked for it last; empty where nothing is known."""
    found = _read(storage, f"runs/{pipeline}/{CURRENT}", ("stages",))
    return dict(found["stages"]) if found else {}


def write_current(storage: Storage, pipeline: str, fingerprints: Mapping[str, str]) -> None:
    """Record which stages a pipeline asks for, done or not: another pipeline's folder may hold a result of it."""
    before = read_current(storage, pipeline)
    now = {**before, **fingerprints}  # `only` leaves the others as they are
    if now != before:
        write_object(storage, f"runs/{pipeline}/{CURRENT}", {"stages": now})


def _read(storage: Storage, name: str, needed: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        found = read_object(storage, name, "")
    except DamagedFileError:
        return None
    return found if found is not None and all(field in found for field in needed) else None
