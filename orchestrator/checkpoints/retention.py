"""Which of a run's checkpoints are kept."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

from orchestrator.artifacts import artifact
from orchestrator.checkpoints.names import begun_steps, is_committed_step, name_of
from orchestrator.errors import OrchestratorError
from orchestrator.storage.store import Storage

log = logging.getLogger(__name__)
_NUM_RECENT = 3
"""At least this many of the newest committed checkpoints, and all unfinished ones between them, are looked at."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept."""

    keep_last: int = 1
    """This many of the newest."""
    keep_every_steps: int | None = None
    """All at multiples of this many steps."""
    keep_best: int = 0
    """This many with the lowest `scores`."""
    scores: Mapping[int, float] = field(default_factory=dict)
    """Score of each by step; a checkpoint without a score is not among the best."""

    good_step: int | None = None
    """`keep_last` checkpoints up to this step are kept as well, since a rollback may need them."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the retention from its JSON fields."""
        return cls(**{**fields, "scores": {int(step): score for step, score in fields["scores"].items()}})

    def keeps(self, begun: Sequence[int], is_committed: Callable[[int], bool]) -> set[int]:
        """Return which checkpoints are kept; of the committed ones the newest always is.

        A step that `keep_every_steps` keeps is looked at only while it is among the newest: a later save has found it
        committed, or has removed it. So what a save asks for does not grow with the number of checkpoints kept, and
        nothing is remembered that a rollback would make wrong.

        Args:
            begun: The steps of all checkpoints, ascending, committed or not.
            is_committed: Returns whether the one of a step is committed.
        """
        known: dict[int, bool] = {}

        def first_committed(steps: Iterable[int], count: int) -> list[int]:
            return [*islice((step for step in steps if _looked_up(step, known, is_committed)), count)]

        num_kept, newest_first = max(1, self.keep_last), begun[::-1]
        newest = first_committed(newest_first, max(_NUM_RECENT, num_kept))[:num_kept]
        good_step = -1 if self.good_step is None else self.good_step
        good = first_committed((step for step in newest_first if step <= good_step), num_kept)
        scored = sorted(self.scores.keys() & begun, key=lambda step: (self.scores[step], step))
        best = first_committed(scored, self.keep_best)
        every = {step for step in begun if self.keep_every_steps and step % self.keep_every_steps == 0}
        return {*newest, *good, *best, *(step for step in every if known.get(step, True))}


def _looked_up(step: int, known: dict[int, bool], is_committed: Callable[[int], bool]) -> bool:
    if step not in known:
        known[step] = is_committed(step)
    return known[step]


def prune(storage: Storage, run_name: str, retention: Retention) -> None:
    """Remove the checkpoints that are not kept, and unfinished ones before the newest; a failure is only logged."""
    with _errors_as_warnings():
        for name in _not_kept(storage, run_name, retention):
            with _errors_as_warnings():
                artifact.remove(storage, name)


def _not_kept(storage: Storage, run_name: str, retention: Retention) -> list[str]:
    begun = begun_steps(storage, run_name)
    kept = retention.keeps(begun, lambda step: is_committed_step(storage, run_name, step))
    return [name_of(run_name, step) for step in begun if step not in kept and step < max(kept, default=0)]


@contextmanager
def _errors_as_warnings() -> Iterator[None]:
    try:
        yield
    except OrchestratorError as error:
        log.warning("could not remove an old checkpoint: %s", error)
