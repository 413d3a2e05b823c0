"""Which of a run's checkpoints are kept."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.artifacts import artifact
from orchestrator.checkpoints.names import begun_steps, committed_steps, name_of
from orchestrator.errors import OrchestratorError
from orchestrator.storage.store import Storage

log = logging.getLogger(__name__)


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

    def keeps(self, steps: list[int]) -> set[int]:
        """Return which of the `steps`, ascending, are kept; the newest always is."""
        best = sorted((step for step in steps if step in self.scores), key=lambda step: self.scores[step])
        every = {step for step in steps if self.keep_every_steps and step % self.keep_every_steps == 0}
        good = [step for step in steps if self.good_step is not None and step <= self.good_step]
        return {*self._newest(steps), *self._newest(good), *best[: self.keep_best], *every}

    def _newest(self, steps: list[int]) -> list[int]:
        return steps[-max(1, self.keep_last) :]


def prune(storage: Storage, run_name: str, retention: Retention) -> None:
    """Remove the checkpoints that are not kept, and unfinished ones before the newest; a failure is only logged."""
    with _errors_as_warnings():
        for name in _not_kept(storage, run_name, retention):
            with _errors_as_warnings():
                artifact.remove(storage, name)


def _not_kept(storage: Storage, run_name: str, retention: Retention) -> list[str]:
    committed = committed_steps(storage, run_name)
    kept = retention.keeps(committed)
    begun = begun_steps(storage, run_name)
    return [name_of(run_name, step) for step in begun if step not in kept and step < max(committed, default=0)]


@contextmanager
def _errors_as_warnings() -> Iterator[None]:
    try:
        yield
    except OrchestratorError as error:
        log.warning("could not remove an old checkpoint: %s", error)
