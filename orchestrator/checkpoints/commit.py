"""The end of a save, on rank 0: the commit, and the removal of the checkpoints that are no longer kept."""

from collections.abc import Mapping
from typing import Any

from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.parts import Part, commit_parts
from orchestrator.checkpoints.retention import Retention, prune
from orchestrator.distributed.layout import Group
from orchestrator.storage.store import Storage


def commit_and_prune(storage: Storage, part: Part, commit: Mapping[str, Any]) -> None:
    """Commit a save that every rank has stored, and remove the checkpoints that are no longer kept.

    Args:
        part: Rank 0's part of the save.
        commit: Plain data: attempt, state, shapes, layout and retention.
    """
    attempt, layout = Attempt(**commit["attempt"]), [Group(**group) for group in commit["layout"]]
    commit_parts(storage, part, commit["state"], commit["shapes"], layout, attempt)
    prune(storage, attempt.run_name, Retention.from_json(commit["retention"]))
