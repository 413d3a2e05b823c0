"""Collective operations; with one worker they return that worker's value, and change nothing."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch.distributed as distributed
from torch import Tensor

from orchestrator.errors import OrchestratorError, StorageError

T = TypeVar("T")


def world_size() -> int:
    """Return the number of workers."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return this worker's rank."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def gathered(value: T) -> list[T]:
    """Return every rank's `value`, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    distributed.all_gather_object(values, value)
    return values


def from_rank_0(action: Callable[[], T]) -> T:
    """Call `action` on rank 0 only, and return its result on every rank.

    Raises:
        OrchestratorError: `action` failed on rank 0; raised on all ranks, so that none waits for it.
    """
    outcome: list[tuple[T | None, OrchestratorError | None]] = [_outcome(action)] if rank() == 0 else [(None, None)]
    if world_size() > 1:
        distributed.broadcast_object_list(outcome, src=0)
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def share_tensors(tensors: Iterable[Tensor], source: int) -> None:
    """Copy the content of rank `source`'s tensors into those of all ranks, which have the same sizes there."""
    if world_size() > 1:
        # side by side, because most of them are small
        for work in [distributed.broadcast(tensor, source, async_op=True) for tensor in tensors]:
            assert work is not None
            work.wait()


def _outcome(action: Callable[[], T]) -> tuple[T | None, OrchestratorError | None]:
    try:
        return action(), None
    except OrchestratorError as error:
        return None, error.with_traceback(None)
    except OSError as error:
        return None, StorageError(str(error))
