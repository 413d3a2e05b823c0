"""Records where the workers of a `WorkerPool` wait for values of their device in a step."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from host_reads import host_reads
from planted_faults import before_each_micro_batch


class Reads(NamedTuple):
    """Values that a worker used in Python."""

    at_once: int
    late: int
    """Of verdicts on earlier steps."""


@dataclass(frozen=True)
class SeenReads:
    """Records reads from the first micro-batch of `step` to that of the next one; a file per rank in `folder`."""

    folder: Path
    step: int

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        from orchestrator.distributed.host_copy import HostCopy

        values, begun = HostCopy.values, dict[int, Reads]()
        num_late = 0

        def late_values(copy: HostCopy) -> list[float]:
            nonlocal num_late
            before = reads.number
            found = values(copy)
            num_late += reads.number - before
            return found

        def note(module: Any, batch: Any) -> None:
            begun.setdefault(module.step, Reads(reads.number - num_late, num_late))

        with ExitStack() as stack:
            reads = stack.enter_context(host_reads(pytest.MonkeyPatch()))
            stack.enter_context(patch.object(HostCopy, "values", late_values))
            stack.enter_context(before_each_micro_batch(note))
            yield
        before, after = begun[self.step], begun[self.step + 1]
        found = Reads(after.at_once - before.at_once, after.late - before.late)
        self._file(rank).write_text(json.dumps(found), encoding="utf-8")

    def _file(self, rank: int) -> Path:
        return self.folder / f"reads-{rank}.json"

    def read(self, rank: int) -> Reads:
        """Return what a rank read in the step."""
        return Reads(*json.loads(self._file(rank).read_text(encoding="utf-8")))
