"""Where a run's checkpoints lie: apart from what reads and writes them, which imports torch."""

from orchestrator.storage import Storage

_PREFIX = "step_"


def folder_of(run_name: str) -> str:
    """Return where a run's checkpoints are."""
    return f"runs/{run_name}/checkpoints"


def name_of(run_name: str, step: int) -> str:
    """Return where the checkpoint after `step` steps is."""
    return f"{folder_of(run_name)}/{_PREFIX}{step:08d}"


def begun_steps(storage: Storage, run_name: str) -> list[int]:
    """Return the steps of all checkpoints of a run, ascending, committed or not."""
    names = (entry for entry in storage.list(folder_of(run_name)) if entry.startswith(_PREFIX))
    return sorted(int(entry.removeprefix(_PREFIX)) for entry in names)
