"""Records the collective operations of a step, those of Python and those of DDP's reducer alike."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from planted_faults import before_each_micro_batch


class Collective(NamedTuple):
    """One collective operation, as torch's dispatcher calls it."""

    name: str
    dtype: str
    num_elements: int
    """Of its output."""


@dataclass(frozen=True)
class SeenCollectives:
    """Records collectives from the first micro-batch of `step` to that of the next one; a file per rank in `folder`."""

    folder: Path
    step: int

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        seen: list[Collective] = []
        recorder, steps = ExitStack(), set()

        def begin_or_end(module: Any, batch: Any) -> None:
            nonlocal seen
            if module.step in steps:
                return
            steps.add(module.step)
            if module.step == self.step:
                seen = recorder.enter_context(recording())
            elif module.step == self.step + 1:
                recorder.close()
                self._file(rank).write_text(json.dumps(seen), encoding="utf-8")

        with before_each_micro_batch(begin_or_end):
            yield

    def _file(self, rank: int) -> Path:
        return self.folder / f"collectives-{rank}.json"

    def read(self, rank: int = 0) -> list[Collective]:
        """Return a rank's collectives in their order."""
        return [Collective(*each) for each in json.loads(self._file(rank).read_text(encoding="utf-8"))]

    def counts(self, rank: int = 0) -> Counter[str]:
        """Return how often each collective with each dtype happens in a rank's step."""
        return Counter(f"{each.name} {each.dtype}" for each in self.read(rank))


@contextmanager
def recording() -> Iterator[list[Collective]]:
    """Record the collectives of this process from here on."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[Collective] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "c10d":
                output = _first_tensor(args)
                name = func.overloadpacket.__name__.strip("_")
                seen.append(Collective(name, str(output.dtype).removeprefix("torch."), output.numel()))
            return func(*args, **(kwargs or {}))

    with Recorder():
        yield seen


def _first_tensor(value: Any) -> Any:
    while isinstance(value, list | tuple):
        value = value[0]
    return value
