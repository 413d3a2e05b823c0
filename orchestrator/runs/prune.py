"""What may be removed below a storage root, since nothing refers to it, and its removal.

The newest finished attempt at each stage stays, and so do later ones, what a pipeline has asked for last, runs outside
pipelines, all that a driver holds, and all to which any of these refer.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.artifacts import artifact
from orchestrator.checkpoints.attempt import RUNS, STAGES, lease_folder
from orchestrator.configuration.names import PARTS_OF_A_RUN
from orchestrator.errors import LeaseError
from orchestrator.runs import lease
from orchestrator.runs.references import Attempt, Claim, Root, read_claim, read_root, side_by_side
from orchestrator.runs.run import no_such_run
from orchestrator.runs.stages import BEGUN, CURRENT, DONE, STAGE, claim
from orchestrator.storage.store import Storage

_FIRST, _LAST = "metrics.json", ("recipe.json", CURRENT)
"""What says that a run is done, and that by which a later command finds what is left of a removal that was cut off."""
_USED, _HELD = "it has been used since it was listed", "a driver runs it"


@dataclass(frozen=True)
class Leftover:
    """A folder that may be removed."""

    path: str
    why: str
    num_bytes: int = 0
    fingerprint: str | None = None
    """Of the stage whose result it is."""
    claim: Claim | None = None
    """As it was found: if it is another one at the removal, the folder stays."""


@dataclass(frozen=True)
class Leftovers:
    """All that may be removed, and what was named and stays."""

    folders: tuple[Leftover, ...]
    data: tuple[Leftover, ...]
    stay: tuple[str, ...]
    """A line for each run or stage that was named and stays."""


def find_leftovers(storage: Storage, names: Collection[str] = ()) -> Leftovers:
    """Return what may be removed; nothing is written.

    Args:
        storage: The storage root.
        names: Runs, and pipelines with all their stages, that stay only if something else refers to them.

    Raises:
        UserError: there is no run and no pipeline of such a name.
    """
    root = read_root(storage)
    _check_names(storage, root, names)
    kept = _kept(storage, root, names)
    attempts = [_of_attempt(root, one, names) for path, one in root.attempts.items() if path not in kept]
    runs = [Leftover(path, "named") for path in root.runs if path not in kept]
    found = [*attempts, *runs, *_claims_without_folder(root, kept)]
    data = [Leftover(path, "no run and no stage refers to it") for path in root.data if path not in kept]
    measured = side_by_side(lambda one: replace(one, num_bytes=_size(storage, one.path)), [*found, *data])
    named = [path for path in (*root.attempts, *root.runs) if _is_named(root, path, names) and path in kept]
    stay = [f"{path.removeprefix('runs/')}: stays; {_referrer(root, kept, path)}" for path in named]
    return Leftovers(tuple(measured[: len(found)]), tuple(measured[len(found) :]), tuple(stay))


def remove_folders(storage: Storage, found: Sequence[Leftover]) -> list[tuple[Leftover, str | None]]:
    """Remove folders; return each with the reason why it stays, None if it is gone."""
    groups: dict[str, list[Leftover]] = {}
    for one in found:  # attempts at the same stage share its lease
        groups.setdefault(one.fingerprint or one.path, []).append(one)
    removed = side_by_side(lambda group: _removed_together(storage, group), list(groups.values()))
    return [pair for pairs in removed for pair in pairs]


def _removed_together(storage: Storage, group: Sequence[Leftover]) -> list[tuple[Leftover, str | None]]:
    """Remove attempts at the same stage under its lease, unless they have been used since they were listed."""
    key, listed = group[0].fingerprint, group[0].claim
    if key is None or listed is None:
        return [(one, _removed(storage, one)) for one in group]
    try:
        with _held(storage, key, STAGES):
            found, _ = read_claim(storage, key)
            if (found.begun, found.done) != (listed.begun, listed.done):
                return [(one, _USED) for one in group]
            return [(one, _removed(storage, one, key, found)) for one in group]
    except LeaseError:
        return [(one, _HELD) for one in group]


def _removed(storage: Storage, one: Leftover, key: str = "", found: Claim | None = None) -> str | None:
    """Remove one folder.

    The record that says it is done goes first, then the one that says where it was begun: who comes after a removal
    that was cut off finds nothing that looks done, and goes on in no folder of which a part is missing.
    """
    is_run = one.path.startswith("runs/")
    try:
        with _held(storage, one.path.removeprefix("runs/"), RUNS) if is_run else nullcontext():
            for name, record in ((DONE, found.done), (BEGUN, found.begun)) if found else ():
                if record is None or record["path"] == one.path or one.path == claim(key):
                    storage.remove(f"{claim(key)}/{name}")
            for part, is_folder in _parts(storage, one.path) if is_run else ():
                artifact.remove(storage, part) if is_folder else storage.remove(part)
    except LeaseError:
        return _HELD
    if is_run:
        storage.remove(f"{one.path}/{STAGE}")  # by which a later command finds what is left
        _remove_empty(storage, one.path)
    return None


def remove_data(storage: Storage, found: Sequence[Leftover]) -> Iterator[tuple[Leftover, str | None]]:
    """Remove prepared data; yield each with the reason why it stays, None if it is gone."""
    root = read_root(storage)
    is_busy = any(one.is_held for one in root.claims.values())
    kept = root.kept_by([*root.attempts, *root.runs, *map(claim, root.claims)])
    for one in found:
        if is_busy or one.path in kept:
            yield one, "stages run now, and may be about to read it" if is_busy else _USED
        else:
            artifact.remove(storage, one.path)
            yield one, None


def _is_named(root: Root, path: str, names: Collection[str]) -> bool:
    """Return whether a run or a stage is named, or the pipeline of a stage."""
    return path.removeprefix("runs/") in names or (path in root.attempts and root.attempts[path].pipeline in names)


def _check_names(storage: Storage, root: Root, names: Collection[str]) -> None:
    for name in names:
        if not any(_is_named(root, path, [name]) for path in (*root.attempts, *root.runs)):
            raise no_such_run(storage, "names", name)


def _kept(storage: Storage, root: Root, names: Collection[str]) -> set[str]:
    """Return every folder that stays."""
    held = {key for key, found in root.claims.items() if found.is_held}
    kept = {claim(key) for key in held} | {path for path in root.runs if not _is_named(root, path, names)}
    live = {pipeline for key in held if (pipeline := _pipeline_of(root.claims[key]))}
    live |= {one.pipeline for one in root.attempts.values() if held & root.refers.get(f"runs/{one.pipeline}", set())}
    kept |= {f"runs/{pipeline}" for pipeline in live}
    for stage in _by_stage(root):
        # a driver at work may be about to read any result of its pipeline
        wanted = stage if stage[0].pipeline in live else _newest(storage, root, stage)
        kept |= {one.path for one in wanted if one.pipeline in live or not _is_named(root, one.path, names)}
    kept = root.kept_by(kept)
    free = [path for path in (*root.attempts, *root.runs) if path not in kept]
    holders = side_by_side(lambda path: lease.holder(storage, path.removeprefix("runs/")), free)
    return root.kept_by([*kept, *(path for path, holder in zip(free, holders, strict=True) if holder)])


def _pipeline_of(found: Claim) -> str | None:
    return found.begun["path"].split("/")[1] if found.begun and found.begun["path"].count("/") == 2 else None


def _by_stage(root: Root) -> list[list[Attempt]]:
    """Return the attempts at each stage of each pipeline, the newest first."""
    found: dict[tuple[str, str], list[Attempt]] = {}
    for one in sorted(root.attempts.values(), key=lambda one: -one.time):
        found.setdefault((one.pipeline, one.stage), []).append(one)
    return list(found.values())


def _newest(storage: Storage, root: Root, stage: Sequence[Attempt]) -> Sequence[Attempt]:
    """Return the newest finished attempt and the newest of all; the latter would be continued."""
    done = next((one for one in stage if _is_done(storage, root, one)), stage[0])
    return [stage[0], done]


def _is_done(storage: Storage, root: Root, one: Attempt) -> bool:
    record = _done_record(root, one)
    return record is not None and record["path"] == one.path and storage.exists(record["result"]["name"])


def _done_record(root: Root, one: Attempt) -> dict[str, Any] | None:
    found = root.claims.get(one.fingerprint)
    return found.done if found else None


def _of_attempt(root: Root, one: Attempt, names: Collection[str]) -> Leftover:
    record = _done_record(root, one)
    if _is_named(root, one.path, names):
        why = "named"
    elif record is None:
        why = "not finished, and the stage was begun anew"
    elif record["path"] == one.path:
        why = "an older result of the stage"
    else:
        why = f"made anew in {record['path']}"
    found = root.claims.get(one.fingerprint, Claim(None, None))
    return Leftover(one.path, why, 0, one.fingerprint, found)


def _claims_without_folder(root: Root, kept: Collection[str]) -> list[Leftover]:
    """Return the records of stages whose folders are gone."""
    return [
        Leftover(claim(key), "its folder is gone", 0, key, found)
        for key, found in root.claims.items()
        if claim(key) not in kept
        and not any(record and record["path"] in root.attempts for record in (found.begun, found.done))
    ]


def _referrer(root: Root, kept: Collection[str], path: str) -> str:
    others = (other for other in sorted(kept) if other != path and other.startswith("runs/"))
    found = next((other for other in others if path in root.kept_by([other])), None)
    return f"{found} refers to it" if found else _HELD


@contextmanager
def _held(storage: Storage, name: str, above: str) -> Iterator[None]:
    """Hold a lease, and leave nothing of it behind; one that another driver takes afterwards has another number."""
    with lease.lease(storage, name, above=above) as attempt:
        yield
    storage.remove(attempt.lease_name)
    storage.remove_if_empty(lease_folder(name, above))
    _remove_empty(storage, f"{above}/{name}")


def _remove_empty(storage: Storage, path: str) -> None:
    """Remove a folder that is empty by now, and that of its pipeline if it was the last one in it."""
    storage.remove_if_empty(path)
    if path.count("/") > 1:
        storage.remove_if_empty(path.rpartition("/")[0])


def _parts(storage: Storage, path: str) -> list[tuple[str, bool]]:
    """Return what a run's folder holds but leases and stage.json, in the order of removal, and whether it is a folder.

    Folders of other runs that lie in it, as in that of a pipeline, are no part of it.
    """
    folders = set(storage.list(path, hidden=True, folders_only=True))
    others = {"lease", STAGE} if path.count("/") > 1 else {"lease"} | folders - PARTS_OF_A_RUN
    names = [name for name in storage.list(path, hidden=True) if name not in others]
    names.sort(key=lambda name: (name in _LAST, name != _FIRST))
    return [(f"{path}/{name}", name in folders) for name in names]


def _size(storage: Storage, path: str) -> int:
    if path.count("/") > 1 or not path.startswith("runs/"):
        return storage.bytes_below(path)
    return sum(storage.bytes_below(name) for name, _ in _parts(storage, path))
