"""Paths of a run's checkpoints; a module of its own, because those that read and write them import torch."""

import re
from collections.abc import Iterator

from orchestrator.artifacts import artifact
from orchestrator.storage.store import Storage


def folder_of(run_name: str) -> str:
    """Return the folder of a run's checkpoints."""
    return f"runs/{run_name}/checkpoints"


def name_of(run_name: str, step: int) -> str:
    """Return the path of the checkpoint after `step` steps."""
    return f"{folder_of(run_name)}/step_{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step of the checkpoint that a path names or lies in; None for other paths."""
    found = re.fullmatch(r"runs/[^/]+(?:/[^/]+)?/checkpoints/step_(\d{8,})(/.*)?", name)
    return int(found[1]) if found else None


def begun_steps(storage: Storage, run_name: str) -> list[int]:
    """Return the steps of all checkpoints of a run, ascending, committed or not."""
    names = (re.fullmatch(r"step_(\d{8,})", entry) for entry in storage.list(folder_of(run_name)))
    return sorted(int(name[1]) for name in names if name)


def is_committed_step(storage: Storage, run_name: str, step: int) -> bool:
    """Return whether the checkpoint after `step` steps is committed."""
    return storage.exists(f"{name_of(run_name, step)}/{artifact.COMMITTED}")


def newest_committed(storage: Storage, run_name: str, at_most: int | None = None) -> Iterator[int]:
    """Yield the steps of a run's committed checkpoints, the newest first.

    Each is looked at only when it is asked for: a run that keeps all its checkpoints has thousands.

    Args:
        at_most: Checkpoints after this step are left out.
    """
    for step in reversed(begun_steps(storage, run_name)):
        if (at_most is None or step <= at_most) and is_committed_step(storage, run_name, step):
            yield step


def committed_steps(storage: Storage, run_name: str) -> list[int]:
    """Return the steps of a run's committed checkpoints, ascending; only reading one shows whether it is complete.

    This looks at each of them; `newest_committed` does not.
    """
    return sorted(newest_committed(storage, run_name))
