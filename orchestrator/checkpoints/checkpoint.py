"""What a checkpoint holds, and how a run finds the newest complete one; the same for all strategies and world sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.artifacts import artifact
from orchestrator.artifacts.digests import digest_bytes
from orchestrator.checkpoints.fragments import FragmentReader
from orchestrator.checkpoints.names import begun_steps, name_of, newest_committed
from orchestrator.checkpoints.parts import STATE, Shapes, check_format, check_shapes, other_version
from orchestrator.checkpoints.progress import Progress
from orchestrator.distributed.collectives import from_rank_0, gathered
from orchestrator.distributed.training_state import TrainingState
from orchestrator.errors import ArtifactError, OrchestratorError
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, whose files are verified when they are read."""

    name: str
    """Relative to the storage root."""
    progress: Progress
    reader: FragmentReader
    shapes: Shapes


def open_checkpoint(storage: Storage, name: str) -> Checkpoint:
    """Open a committed checkpoint.

    Raises:
        ArtifactError: manifest or state is missing or damaged.
        OtherCheckpointError: another version of this program has written it.
    """
    return _opened(storage, name, *_description(storage, name))


def _description(storage: Storage, name: str) -> tuple[dict[str, Any], bytes]:
    """Return the manifest and the state as they are stored."""
    manifest = artifact.read_manifest(storage, name)
    check_format(manifest, storage.url(name))
    try:
        return manifest, storage.read_bytes(f"{name}/{STATE}")
    except NotFoundError:
        raise ArtifactError(f"{storage.url(name)}: {STATE} is missing") from None


def _opened(storage: Storage, name: str, manifest: dict[str, Any], state: bytes) -> Checkpoint:
    if digest_bytes(state) != artifact.file_entries(manifest).get(STATE):
        raise ArtifactError(f"{storage.url(name)}: {STATE} is damaged (its digest is not the one in the manifest)")
    try:
        progress = Progress.from_json(state)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise other_version(f"{storage.url(name)}: {STATE} has other fields ({error})") from None
    return Checkpoint(name, progress, FragmentReader(storage, name, manifest), manifest["shapes"])


def restore(
    storage: Storage,
    run_name: str,
    state: TrainingState,
    shapes: Shapes,
    notify: Callable[[str], None],
    at_most: int | None = None,
) -> Progress | None:
    """Fill `state` from the newest complete checkpoint; all ranks call this together.

    Rank 0 reads the manifest for all; each rank reads and verifies what it owns, and gets from the others what it holds
    besides. If one rank finds damage, all ranks use the previous checkpoint.

    Args:
        notify: Receives a message for each checkpoint that is skipped, with the reason.
        at_most: Checkpoints after this step are ignored.

    Returns:
        The progress of the run at that checkpoint; None if it has no checkpoints.

    Raises:
        ArtifactError: no checkpoint is complete; a run with checkpoints never starts from scratch by itself.
        OtherCheckpointError: the newest complete one is of another version or model, which is no damage.
        StorageError: the store cannot be read, which does not mean that a checkpoint is damaged.
    """
    faults = []
    newest_first = newest_committed(storage, run_name, at_most)
    while (step := from_rank_0(lambda: next(newest_first, None))) is not None:
        progress, error = _load(storage, name_of(run_name, step), state, shapes)
        errors = [other for other in gathered(error) if other]
        if not errors:
            state.complete()
            return progress
        first = next((other for other in errors if not isinstance(other, ArtifactError)), errors[0])
        if not isinstance(first, ArtifactError):
            raise first
        notify(f"skipped a damaged checkpoint: {first}")
        faults.append(str(first))
    if faults:
        remedy = "restore one from a copy, or choose another run.name to begin anew"
        raise ArtifactError("; ".join(["no checkpoint of this run is whole: " + faults[0], *faults[1:], remedy]))
    return None


def _load(
    storage: Storage, name: str, state: TrainingState, shapes: Shapes
) -> tuple[Progress | None, OrchestratorError | None]:
    try:
        # the manifest lists a file for each worker: if each read it, the store would send the square of that
        opened = _opened(storage, name, *from_rank_0(lambda: _description(storage, name)))
        check_shapes(opened.shapes, shapes, storage.url(name))
        state.load(opened.reader, opened.progress.optimizer_steps)
    except OrchestratorError as error:
        return None, error.with_traceback(None)
    return opened.progress, None


def discard_after(storage: Storage, run_name: str, step: int) -> None:
    """Remove the commits of all checkpoints after `step`: the run continues from there and writes them again."""
    for later in begun_steps(storage, run_name):
        if later > step:  # committed or not
            storage.remove(f"{name_of(run_name, later)}/{artifact.COMMITTED}")
