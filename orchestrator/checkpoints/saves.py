"""Saves of the training state, one at a time: every rank stores its part, rank 0 commits, all ranks get the result."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, Protocol

from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.background_writer import BackgroundWriter
from orchestrator.checkpoints.commit import commit_and_prune
from orchestrator.checkpoints.names import name_of
from orchestrator.checkpoints.parts import Part, Shapes, error_of, store_part
from orchestrator.checkpoints.pinning import Pinning
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.retention import Retention
from orchestrator.checkpoints.snapshot import Snapshot
from orchestrator.distributed.collectives import from_rank_0, gathered, rank, world_size
from orchestrator.distributed.training_state import TrainingState
from orchestrator.errors import StorageError
from orchestrator.storage.store import Storage


class Writer(Protocol):
    """Stores this rank's part of a save; on rank 0 also commits the save."""

    def prepare(self, num_bytes: int) -> None:
        """Prepare for parts of this size."""
        ...

    def start(self, part: Part, snapshot: Snapshot, commit: Mapping[str, Any]) -> None:
        """Begin; the state may change afterwards."""
        ...

    def stored(self) -> StorageError | None:
        """Wait until this rank's part is stored; return the error, if any."""
        ...

    def committed(self) -> StorageError | None:
        """Wait until all ranks have stored and the save is committed; return the error, if any."""
        ...

    @property
    def is_committed(self) -> bool:
        """Whether the save is committed already."""
        ...

    def expect_all(self) -> None:
        """Wait for the other ranks no longer than a listing may be out of date: all have stored their parts."""
        ...

    def abandon(self) -> None:
        """Do not commit, because another rank could not store its part."""
        ...

    def close(self) -> None:
        """End a save in progress."""
        ...


class Saves:
    """Begins and finishes saves; all ranks call each method together.

    Args:
        mode: `async`: training waits until the state is copied in memory; `sync`: until it is stored.
        pinning: Page-locks that memory, where the state is on a device.
    """

    def __init__(
        self, storage: Storage, attempt: Attempt, mode: Literal["sync", "async"], pinning: Pinning | None = None
    ) -> None:
        self._storage, self._attempt = storage, attempt
        # the writer process could not write to a store in the memory of this process
        is_background = mode == "async" and storage.is_shared
        self._writer: Writer = BackgroundWriter(storage, pinning) if is_background else _Inline(storage)
        self._attempt_id, self._number = from_rank_0(lambda: secrets.token_hex(3)), 0

    def prepare(self, state: TrainingState) -> None:
        """Prepare for saves of `state`, which may get its moments later."""
        self._writer.prepare(Snapshot.of(state.owned()).num_bytes_with_moments)

    def begin(self, state: TrainingState, shapes: Shapes, progress: Progress, retention: Retention) -> None:
        """Begin a save; the previous one must be finished. The state may change afterwards."""
        self._number += 1
        save_id = f"{self._attempt_id}-{self._number}"
        snapshot = Snapshot.of(state.owned())
        part = Part(name_of(self._attempt.run_name, progress.step), save_id, rank(), world_size(), snapshot.index)
        self._writer.start(part, snapshot, self._commit(state, shapes, progress, retention) if rank() == 0 else {})

    def _commit(
        self, state: TrainingState, shapes: Shapes, progress: Progress, retention: Retention
    ) -> Mapping[str, Any]:
        """Return what a commit is made of, as plain data."""
        return {
            "attempt": asdict(self._attempt),
            "state": progress.to_json(),
            "shapes": shapes,
            "layout": [asdict(group) for group in state.layout()],
            "retention": asdict(retention),
        }

    @property
    def is_committed(self) -> bool:
        """Whether the current save is committed; only rank 0 knows."""
        return self._writer.is_committed

    def finish(self) -> StorageError | None:
        """Wait until the save is committed; return the error, if any, the same on all ranks."""
        stored = enumerate(gathered(self._writer.stored()))
        errors = [type(error)(f"worker {number}: {error}") for number, error in stored if error]
        if rank() == 0:
            (self._writer.abandon if errors else self._writer.expect_all)()
        committed = from_rank_0(self._writer.committed)
        return errors[0] if errors else committed

    def close(self) -> None:
        """End a save in progress without waiting for its commit; each rank does this independently."""
        self._writer.close()


class _Inline:
    """Writes while training waits; needs no memory for a copy."""

    is_committed = False
    """Only read until `committed` has returned, so it stays False."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def prepare(self, num_bytes: int) -> None:
        """Nothing to prepare."""

    def start(self, part: Part, snapshot: Snapshot, commit: Mapping[str, Any]) -> None:
        self._part, self._commit, self._is_abandoned = part, commit, False
        self._error = error_of(lambda: store_part(self._storage, part, snapshot.pieces()))

    def stored(self) -> StorageError | None:
        return self._error

    def expect_all(self) -> None:
        """Nothing to say: the parts are read only after this."""

    def abandon(self) -> None:
        self._is_abandoned = True

    def committed(self) -> StorageError | None:
        return None if self._is_abandoned else error_of(self._commit_and_prune)

    def _commit_and_prune(self) -> None:
        commit_and_prune(self._storage, self._part, self._commit)

    def close(self) -> None:
        """Nothing to end."""
