"""What lies below a storage root, and what refers to what: a record refers to each place that its text names.

The text of a configuration or a recipe is searched as it is, so that no field that may hold a path is forgotten: too
much may be kept, and never too little.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orchestrator.artifacts.artifact import MANIFEST
from orchestrator.artifacts.mixture import PREFIX
from orchestrator.artifacts.recipe import fingerprint
from orchestrator.checkpoints.attempt import STAGES
from orchestrator.runs import lease
from orchestrator.runs.run import folder_names
from orchestrator.runs.stages import BEGUN, CURRENT, DONE, NUM_READERS, STAGE, claim
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

S = TypeVar("S")
T = TypeVar("T")
_NAME = r"[A-Za-z0-9][\w.-]*"
# a place within a place is found, too: a root may be called runs/ itself
_PLACE = re.compile(rf"(?<![\w.-])(?=((?:runs|data)/{_NAME}(?:/{_NAME})?))")
_FINGERPRINT = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")
_ATTEMPT = re.compile(r"(.+)-([0-9a-f]{8})(-\d+)?")
_RECORDS = ("recipe.json", "config.yaml")
"""Of a run."""


@dataclass(frozen=True)
class Attempt:
    """A folder runs/PIPELINE/STAGE-FINGERPRINT."""

    path: str
    pipeline: str
    stage: str
    fingerprint: str
    time: float


@dataclass(frozen=True)
class Claim:
    """A folder stages/FINGERPRINT."""

    begun: dict[str, Any] | None
    done: dict[str, Any] | None
    is_held: bool = False
    """A live driver runs the stage."""


@dataclass
class Root:
    """All runs, stages and prepared data below a storage root."""

    attempts: dict[str, Attempt] = field(default_factory=dict)
    """By folder."""
    runs: list[str] = field(default_factory=list)
    """Folders of other runs, and of pipelines that say what they ask for."""
    claims: dict[str, Claim] = field(default_factory=dict)
    """By fingerprint."""
    data: list[str] = field(default_factory=list)
    """Folders of prepared data."""
    refers: dict[str, set[str]] = field(default_factory=dict)
    """Each folder, and those that its records name."""

    def kept_by(self, kept: Collection[str]) -> set[str]:
        """Return these folders and all to which they refer, directly or through others."""
        found, left = set[str](), list(kept)
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += self.refers.get(name, ())
        return found


def read_root(storage: Storage) -> Root:
    """Return what lies below a root; the number of requests grows with the number of runs and stages alone."""
    root = Root()
    keys = storage.list(STAGES, folders_only=True)
    for key, (found, texts) in zip(keys, side_by_side(lambda key: read_claim(storage, key), keys), strict=True):
        root.claims[key] = found
        root.refers[claim(key)] = _named(texts)
    names = folder_names(storage)
    for name, texts in zip(names, side_by_side(lambda name: _texts_of_run(storage, name), names), strict=True):
        _add_run(root, f"runs/{name}", texts)
    root.data = [f"data/{name}" for name in storage.list("data", folders_only=True)]
    mixtures = [name for name in root.data if name.startswith(PREFIX)]
    manifests = side_by_side(lambda name: _text(storage, f"{name}/{MANIFEST}"), mixtures)
    root.refers |= {name: _named([text]) for name, text in zip(mixtures, manifests, strict=True)}
    _resolve(root)
    return root


def read_claim(storage: Storage, key: str) -> tuple[Claim, list[str]]:
    """Return what a stage's folder says, and its texts."""
    begun, done = (_text(storage, f"{claim(key)}/{name}") for name in (BEGUN, DONE))
    is_held = lease.holder(storage, key, STAGES) is not None
    return Claim(_object(begun, "path"), _object(done, "path", "recipe", "result"), is_held), [begun, done]


def _texts_of_run(storage: Storage, name: str) -> list[str]:
    """Return the texts of stage, recipe and configuration, empty where there is none; of a pipeline, its stages'."""
    first = STAGE if "/" in name else CURRENT
    return [_text(storage, f"runs/{name}/{file}") for file in (first, *_RECORDS)]


def _add_run(root: Root, path: str, texts: list[str]) -> None:
    root.refers[path] = _named(texts)
    attempt, name = _object(texts[0], "stage", "recipe", "time"), path.partition("/")[2]
    if attempt is not None and "/" in name:
        key, folder = fingerprint(attempt["recipe"]), _ATTEMPT.fullmatch(name.partition("/")[2])
        # who has edited or copied a record has made a folder of his own
        if folder is not None and folder[1] == attempt["stage"] and key.startswith(folder[2]):
            pipeline = name.partition("/")[0]
            root.attempts[path] = Attempt(path, pipeline, attempt["stage"], key, attempt["time"])
            root.refers[path].add(key)
    if path not in root.attempts and any(texts):
        root.runs.append(path)
    if texts[1] and (recipe := _object(texts[1])):  # an input may name a run by the fingerprint of its recipe
        root.refers.setdefault(fingerprint(recipe), set()).add(path)


def _resolve(root: Root) -> None:
    """Let a fingerprint that is named lead to the folder of the stage, and a part of a run to the run."""
    runs = {*root.attempts, *root.runs}
    for path, named in root.refers.items():
        root.refers[path] = {name if name in runs or name.count("/") < 2 else _above(name) for name in named}
    for key in root.claims:
        root.refers.setdefault(key, set()).add(claim(key))


def _above(name: str) -> str:
    return name.rpartition("/")[0]


def _named(texts: Iterable[str]) -> set[str]:
    """Return the places and the fingerprints that texts name."""
    found: set[str] = set()
    for text in texts:
        found |= {match[1] for match in _PLACE.finditer(text)}
        found |= set(_FINGERPRINT.findall(text))
    return found


def side_by_side(read: Callable[[S], T], names: Sequence[S]) -> list[T]:
    """Return what is read of each, several at a time."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return list(pool.map(read, names))


def _text(storage: Storage, name: str) -> str:
    try:
        return storage.read_bytes(name).decode(errors="replace")
    except NotFoundError:
        return ""


def _object(text: str, *needed: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and all(name in found for name in needed) else None
