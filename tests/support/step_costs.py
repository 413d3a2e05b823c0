"""What a step costs beside computing: collectives, and places where a worker waits for values from its device."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from planted_faults import before_each_micro_batch
from torch.utils._python_dispatch import TorchDispatchMode

READS = "reads"
"""Values that are used in Python, for which a worker would wait on a GPU."""
LATE_READS = "late reads"
"""The same of verdicts on earlier steps."""


class _Counting(TorchDispatchMode):
    """Counts collectives by name, and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.reads_late = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = function.name().split("::")
        if namespace == "c10d":
            self.counts[name.strip("_").split(".")[0]] += 1
        elif name.startswith("_local_scalar_dense"):
            self.note_read()
        return function(*args, **(kwargs or {}))

    def note_read(self) -> None:
        self.counts[LATE_READS if self.reads_late else READS] += 1


@dataclass(frozen=True)
class StepCosts:
    """Counts in each step, from its first micro-batch to that of the next step; one file per rank in `folder`."""

    folder: Path

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        from orchestrator.distributed.host_copy import HostCopy

        counting = _Counting()
        steps: defaultdict[int, Counter[str]] = defaultdict(Counter)
        values = HostCopy.values

        def begin(module: Any, batch: Any) -> None:
            counting.counts = steps[module.step]

        def late_values(copy: HostCopy) -> list[float]:
            counting.reads_late = True
            try:
                return values(copy)
            finally:
                counting.reads_late = False

        with ExitStack() as stack:
            stack.enter_context(patch.object(HostCopy, "values", late_values))
            for name in ("tolist", "cpu"):
                stack.enter_context(patch.object(torch.Tensor, name, _noted(counting, getattr(torch.Tensor, name))))
            stack.enter_context(before_each_micro_batch(begin))
            stack.enter_context(counting)
            yield
        (self.folder / f"costs-{rank}.json").write_text(json.dumps(steps), encoding="utf-8")

    def read(self, rank: int, step: int) -> dict[str, int]:
        """Return what rank `rank` counted in a step, counted from 0."""
        return json.loads((self.folder / f"costs-{rank}.json").read_text(encoding="utf-8"))[str(step)]


def _noted(counting: _Counting, method: Any) -> Any:
    def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        counting.note_read()
        return method(tensor, *args, **kwargs)

    return noted
