"""Checkpoints: save, commit, find, verify, prune, resume. One form for every strategy and number of workers."""

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch.distributed

from modules.config import ModelConfig
from modules.model import initial_values
from orchestrator import artifact
from orchestrator.artifact import FileEntry
from orchestrator.checkpoint_names import begun_steps, name_of
from orchestrator.errors import ArtifactError, OrchestratorError
from orchestrator.fragments import FragmentReader, merge_indexes, write_fragments
from orchestrator.guard import GuardState
from orchestrator.storage import Storage
from orchestrator.storage.local import sync
from orchestrator.training_state import MASTER, TrainingState

log = logging.getLogger(__name__)
_STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """How far the run is; all else (schedule, phase, and with the offset data) follows from the step."""

    step: int
    """Finished steps, those skipped among them."""
    tokens: int
    """Tokens seen, over all workers."""
    loss_scale: float | None = None
    """float16 only."""
    data_offset: int = 0
    """Steps of data that were passed over: step s has the data of step s + data_offset."""
    guard: GuardState = field(default_factory=GuardState)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return what `to_json` has written."""
        fields = json.loads(data)
        return cls(**{**fields, "guard": GuardState(**fields["guard"])})

    def to_json(self) -> bytes:
        """Return all of it as JSON."""
        return json.dumps(asdict(self), indent=2).encode()

    @property
    def optimizer_steps(self) -> int:
        """Steps that have moved the weights."""
        return self.step - self.guard.num_skipped


@dataclass(frozen=True)
class Checkpoint:
    """A committed and verified checkpoint."""

    name: str
    """Relative to the storage root."""
    progress: Progress
    reader: FragmentReader
    shapes: dict[str, list[int]]
    """Shape of each parameter."""


@dataclass(frozen=True)
class InitialWeights:
    """The state before the first step, read by the range like a checkpoint."""

    shapes: dict[str, tuple[int, ...]]
    model: ModelConfig
    vocab_size: int
    seed: int

    def read(self, parameter: str, kind: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of a parameter's initial weights as flat float32."""
        assert kind == MASTER, "an optimizer without steps has no moments"
        shape = self.shapes[parameter]
        return initial_values(parameter, shape, start, stop, self.seed, self.model, self.vocab_size)


def save(storage: Storage, name: str, state: TrainingState, shapes: dict[str, list[int]], progress: Progress) -> None:
    """Write this rank's fragments, then commit once every rank has written. All ranks call it together.

    Raises:
        OrchestratorError: some rank could not write; raised on all of them, and nothing is committed.
    """
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    parts = _gather(_attempt(lambda: _write_part(storage, name, state, rank)))
    _raise_first(parts)
    committed = _attempt(lambda: _commit(storage, name, parts, shapes, progress)) if rank == 0 else {}
    _raise_first(_gather(committed))


def _write_part(storage: Storage, name: str, state: TrainingState, rank: int) -> dict[str, Any]:
    file = f"rank_{rank:05d}.safetensors"
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as staging:
        # a local store is written in place: nothing there counts before the commit
        target = storage.local_path(f"{name}/{file}")
        path = target or Path(staging) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        index = write_fragments(state.owned(), path)
        entry = artifact.digest_file(path)
        if target is None:
            storage.upload(path, f"{name}/{file}")
        else:
            sync(path)
    return {"file": file, "entry": asdict(entry), "index": index}


def _commit(
    storage: Storage, name: str, parts: list[dict[str, Any]], shapes: dict[str, list[int]], progress: Progress
) -> dict[str, Any]:
    files = {part["file"]: FileEntry(**part["entry"]) for part in parts}
    state = progress.to_json()
    storage.write_bytes(f"{name}/{_STATE}", state)
    files[_STATE] = artifact.digest_bytes(state)
    index = merge_indexes(part["index"] for part in parts)
    artifact.commit(storage, name, files, {"kind": "checkpoint", "shapes": shapes, "fragments": index})
    return {}


def _attempt(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `action` returns, or its error as data, so that no rank waits for one that failed."""
    try:
        return action()
    except (OrchestratorError, OSError) as error:
        return {"error": str(error)}


def _gather(part: dict[str, Any]) -> list[dict[str, Any]]:
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [part]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts


def _raise_first(parts: list[dict[str, Any]]) -> None:
    for rank, part in enumerate(parts):
        if "error" in part:
            raise ArtifactError(f"checkpoint not saved: rank {rank}: {part['error']}")


def steps_of(storage: Storage, run_name: str) -> list[int]:
    """Return the steps of a run's committed checkpoints, ascending; whole or not: see `newest_valid`."""
    steps = begun_steps(storage, run_name)
    return [step for step in steps if storage.exists(f"{name_of(run_name, step)}/{artifact.COMMITTED}")]


def newest_valid(storage: Storage, run_name: str, say: Callable[[str], None], at_most: int | None = None) -> str | None:
    """Return the newest checkpoint that is whole; None for a run without any.

    Args:
        say: Is told of each that was passed over, and why.
        at_most: Later steps are not looked at, as if there were none.

    Raises:
        ArtifactError: there are checkpoints, and none is whole: nothing starts from scratch by itself.
    """
    faults = []
    for step in reversed(steps_of(storage, run_name)):
        if at_most is not None and step > at_most:
            continue
        try:
            artifact.verify(storage, name_of(run_name, step))
            return name_of(run_name, step)
        except ArtifactError as error:
            say(f"passed over a damaged checkpoint: {error}")
            faults.append(str(error))
    if faults:
        raise ArtifactError("no checkpoint of this run is whole: " + "; ".join(faults))
    return None


def discard_after(storage: Storage, run_name: str, step: int) -> None:
    """Take the commit from all checkpoints after `step`: the run goes on from there and writes them anew."""
    for later in steps_of(storage, run_name):
        if later > step:
            storage.remove(f"{name_of(run_name, later)}/{artifact.COMMITTED}")


def open_checkpoint(storage: Storage, name: str) -> Checkpoint:
    """Open a checkpoint whose files have been verified."""
    manifest = artifact.read_manifest(storage, name)
    progress = Progress.from_json(storage.read_bytes(f"{name}/{_STATE}"))
    return Checkpoint(name, progress, FragmentReader(storage, name, manifest["fragments"]), manifest["shapes"])


def prune(storage: Storage, run_name: str, keep_last: int, keep_every_steps: int | None, good_step: int) -> None:
    """Remove committed checkpoints but the newest and those at every so many steps; a failure stops nothing.

    Args:
        good_step: The newest up to here are kept, too: a rollback may need them.
    """
    steps = steps_of(storage, run_name)
    kept = {*steps[-keep_last:], *[step for step in steps if step <= good_step][-keep_last:]}
    for step in steps:
        if step in kept or (keep_every_steps and step % keep_every_steps == 0):
            continue
        try:
            artifact.remove(storage, name_of(run_name, step))
        except OrchestratorError as error:
            log.warning("could not remove an old checkpoint: %s", error)
