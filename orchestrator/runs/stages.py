"""What is stored of the stages of pipelines: who has begun one, whether it is done, and the recipe of each attempt.

stages/FINGERPRINT/begun.json          {"path", "pipeline", "stage", "inputs", "time"}
stages/FINGERPRINT/done.json           {"path", "command", "recipe", "result": {"name", "digest"}, "inputs", …}
runs/PIPELINE/STAGE-FINGERPRINT/stage.json    {"stage", "recipe", "inputs": {setting: stages or paths}, "time"}
runs/PIPELINE/stages.json              {"stages": {stage: fingerprint}}: what the pipeline has asked for last
"""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.checkpoints.attempt import STAGES
from orchestrator.errors import DamagedFileError
from orchestrator.runs.json_files import read_object, write_object
from orchestrator.storage.store import Storage

STAGE, BEGUN, DONE, CURRENT = "stage.json", "begun.json", "done.json", "stages.json"
NUM_READERS = 8
_FOLDER = re.compile(r"(?P<stage>.+)-[0-9a-f]{8}(-\d+)?")


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


def attempt_folders(storage: Storage, pipeline: str) -> dict[str, list[str]]:
    """Return the folders of all attempts at the stages of a pipeline, by the stage's name."""
    found: dict[str, list[str]] = {}
    for name in storage.list(f"runs/{pipeline}", folders_only=True):
        if match := _FOLDER.fullmatch(name):
            found.setdefault(match["stage"], []).append(f"runs/{pipeline}/{name}")
    return found


def attempts(storage: Storage, folders: Iterable[str]) -> list[dict[str, Any]]:
    """Return the attempts in these folders, the newest first: stage, path, recipe, time, and what inputs are called."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = [one for one in pool.map(lambda folder: read_attempt(storage, folder), folders) if one]
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
