"""Faults to order: what may be broken on purpose, when, and the rules about it."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from modules.config import Config, Runtime

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
"""Those that strike a save; all others strike within a step."""


class FaultsConfig(Config):
    """One fault that a run brings upon itself, to rehearse what becomes of it."""

    kind: Runtime[FaultKind]
    """What goes wrong; the group's options say it in full."""
    at_step: Runtime[PositiveInt]
    """It fires within this step, counted from 1, or as soon after as it can; of saves it strikes the next one."""
    rank: Runtime[NonNegativeInt] = 0
    """The worker that it strikes."""
    times: Runtime[PositiveInt] = 1
    """It fires so often in the life of the run, whatever restarts; at most once a step or save."""

    @property
    def damages_checkpoint(self) -> bool:
        """Whether a checkpoint that is there is spoilt."""
        return self.kind in ("truncate_checkpoint", "flip_bit")

    @property
    def fails_saves(self) -> bool:
        """Whether the store refuses what a save writes."""
        return self.kind in SAVE_KINDS


def fault_mistakes(faults: FaultsConfig, worker_counts: range, num_steps: int, keep_last: int) -> list[str]:
    """Return why an ordered fault could not happen, or could not be survived, one line each.

    Args:
        worker_counts: Every number of workers that the run may have.
        num_steps: All steps of the run.
        keep_last: Newest checkpoints that are kept.
    """
    fewest, lines = min(worker_counts), []
    if faults.rank >= fewest:
        lines.append(
            f"faults.rank={faults.rank}: the run may have {fewest} worker{'s' if fewest > 1 else ''}, of rank "
            f"{'0' if fewest == 1 else f'0 to {fewest - 1}'}; choose one of them or raise cluster.num_workers"
        )
    if faults.at_step >= num_steps:
        lines.append(f"faults.at_step={faults.at_step}: must be below training.num_steps ({num_steps})")
    if faults.kind == "stop_rank" and fewest == 1:
        lines.append(
            "faults=stop_rank: nobody finds a single worker that has stopped; set cluster.num_workers=2 or more"
        )
    if faults.damages_checkpoint and keep_last < 2:
        lines.append(
            f"faults={faults.kind}: the run goes on from the checkpoint before the damaged one, and "
            f"checkpoint.keep_last={keep_last} keeps none; set it to 2 or more"
        )
    return lines
