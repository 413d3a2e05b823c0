"""Injected faults: what a run may break on purpose, when, and the rules about it."""

from collections.abc import Sequence
from typing import Literal

from modules.config import Config, Count, CountOrZero, Runtime, Steps

FaultKind = Literal[
    "kill_rank",
    "stop_rank",
    "terminate_rank",
    "nan_loss",
    "truncate_checkpoint",
    "flip_bit",
    "fail_upload",
    "full_disk",
]

SAVE_KINDS = ("fail_upload", "full_disk")
"""Kinds that happen during a save; all others happen within a step."""


class FaultsConfig(Config):
    """One fault that a run injects into itself, to test the recovery."""

    kind: Runtime[FaultKind]
    """What goes wrong; the group's options say it in full."""
    at_step: Runtime[Steps]
    """It happens in this step, counted from 1, or as soon as possible after it; in saves, in the next one."""
    rank: Runtime[CountOrZero] = 0
    """The worker in which it happens."""
    times: Runtime[Count] = 1
    """How many times it happens in the whole run, restarts included; at most once per step or save."""

    @property
    def damages_checkpoint(self) -> bool:
        """Whether the fault damages an existing checkpoint."""
        return self.kind in ("truncate_checkpoint", "flip_bit")

    @property
    def fails_saves(self) -> bool:
        """Whether the fault makes the store refuse the writes of a save."""
        return self.kind in SAVE_KINDS


def fault_mistakes(faults: FaultsConfig, worker_counts: Sequence[int], num_steps: int, keep_last: int) -> list[str]:
    """Return the reasons why the fault could not happen or the run could not survive it, one line each.

    Args:
        worker_counts: Every number of workers that the run may have.
        num_steps: All steps of the run.
        keep_last: Newest checkpoints that are kept.
    """
    fewest, lines = min(worker_counts), []
    if faults.rank >= fewest:
        lines.append(
            f"faults.rank={faults.rank}: the run may have {fewest} worker{'s' if fewest > 1 else ''}, with rank "
            f"{'0' if fewest == 1 else f'0 to {fewest - 1}'}; choose one of them or raise cluster.num_workers"
        )
    if faults.at_step >= num_steps:
        lines.append(f"faults.at_step={faults.at_step}: must be below training.num_steps ({num_steps})")
    if faults.kind == "stop_rank" and fewest == 1:
        lines.append(
            "faults=stop_rank: a single worker that has stopped is never detected; set cluster.num_workers=2 or more"
        )
    if faults.damages_checkpoint and keep_last < 2:
        lines.append(
            f"faults={faults.kind}: the run continues from the checkpoint before the damaged one, and "
            f"checkpoint.keep_last={keep_last} keeps none; set it to 2 or more"
        )
    return lines
