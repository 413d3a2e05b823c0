"""Faults and probes that tests plant in workers of a `WorkerPool`: bad losses, signals, crashes, records of data."""

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

Plant = Callable[[int], AbstractContextManager[None]]
"""Called with a rank; the context is entered for the duration of a training."""


@contextmanager
def before_each_micro_batch(act: Callable[[Any, Any], None]) -> Iterator[None]:
    """Call `act(module, batch)` before each micro-batch is computed."""
    from modules.gpt_module import GPTModule

    original = GPTModule.training_step

    def training_step(module: Any, batch: Any, index: int) -> Any:
        act(module, batch)
        return original(module, batch, index)

    with patch.object(GPTModule, "training_step", training_step):
        yield


@dataclass(frozen=True)
class PlantedLoss:
    """Changes the loss to `loss * factor + offset` in `steps`, counted from 0, on `rank` (None: on all)."""

    steps: tuple[int, ...]
    factor: float = 1.0
    offset: float = 0.0
    rank: int | None = None
    with_data: bool = False
    """The data of those steps is bad, in whichever steps it is used."""

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        from modules import gpt_module

        original = gpt_module.GPTModule.training_step
        weighted_sum = gpt_module.weighted_sum

        def spoilt(losses: Any, weights: Any) -> Any:
            return weighted_sum(losses, weights) * self.factor + self.offset

        def training_step(module: Any, batch: Any, index: int) -> Any:
            step = batch["step"] if self.with_data else module.step
            if step not in self.steps or self.rank not in (None, rank):
                return original(module, batch, index)
            with patch.object(gpt_module, "weighted_sum", spoilt):
                return original(module, batch, index)

        with patch.object(gpt_module.GPTModule, "training_step", training_step):
            yield


@dataclass(frozen=True)
class PlantedCrash:
    """Ends the training in a step on all ranks, with nothing saved: equivalent to killing all workers."""

    step: int

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        def crash(module: Any, batch: Any) -> None:
            if module.step == self.step:
                raise RuntimeError("planted crash")

        with before_each_micro_batch(crash):
            yield


@dataclass(frozen=True)
class PlantedNotice:
    """Makes worker `rank` send itself a signal when it first reaches a step."""

    step: int
    signal: int
    rank: int

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        left = [self.step] if rank == self.rank else []

        def send(module: Any, batch: Any) -> None:
            if module.step in left:
                left.clear()
                os.kill(os.getpid(), self.signal)

        with before_each_micro_batch(send):
            yield


@dataclass(frozen=True)
class LateVerdicts:
    """Uses verdicts where the step is computed and reads them a step later, as on a GPU."""

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        from orchestrator.training.callbacks.bad_steps import SkipBadSteps

        late = patch.object(SkipBadSteps, "__init__", partialmethod(SkipBadSteps.__init__, reads_late=True))
        # looked at where that costs no wait
        unseen = patch("orchestrator.training.callbacks.gradients._is_below", return_value=False)
        with late, unseen:
            yield


@dataclass(frozen=True)
class CompiledWithoutCompiler:
    """Compiles blocks without a C++ compiler, and records what became of it, in one file per rank in `folder`.

    The file has the number of graphs, the number of breaks in them, and whether something of the size of a weight was
    kept for the backward pass that is not the weight itself.
    """

    folder: Path

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        import torch
        from torch._dynamo.utils import counters

        from modules.gpt_module import GPTModule
        from modules.model import GPT

        torch._dynamo.reset()
        counters.clear()
        training_step, copies = GPTModule.training_step, []

        def compile_blocks(model: Any) -> None:
            compile_model(model, backend="aot_eager")

        def watched(module: Any, batch: Any, index: int) -> Any:
            def keep(tensor: Any) -> Any:
                is_weight = isinstance(tensor, torch.nn.Parameter)
                copies.extend([tensor.shape] if tensor.shape in shapes and not is_weight else [])
                return tensor

            weights = [weight for weight in module.model.blocks.parameters() if weight.requires_grad]
            shapes = {torch.Size(getattr(weight, "ds_shape", weight.shape)) for weight in weights}
            shapes = {shape for shape in shapes if len(shape) == 2} | {shape[::-1] for shape in shapes}
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                return training_step(module, batch, index)

        compile_model = GPT.compile
        with patch.object(GPT, "compile", compile_blocks), patch.object(GPTModule, "training_step", watched):
            yield
        found = [counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()), len(copies)]
        (self.folder / f"compiled-{rank}.txt").write_text(" ".join(map(str, found)), encoding="utf-8")

    def read(self) -> list[tuple[int, ...]]:
        """Return the numbers of graphs, breaks and copies of each rank."""
        files = sorted(self.folder.glob("compiled-*.txt"))
        return [tuple(map(int, file.read_text(encoding="utf-8").split())) for file in files]


@dataclass(frozen=True)
class ShiftedData:
    """Gives each step from `first_step` on the data of the step that is `num_steps` later."""

    first_step: int
    num_steps: int

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        from modules.data.batches import Batches

        original = Batches.micro_batches

        def micro_batches(batches: Any, step: int) -> Any:
            return original(batches, step + self.num_steps if step >= self.first_step else step)

        with patch.object(Batches, "micro_batches", micro_batches):
            yield


@dataclass(frozen=True)
class SeenSamples:
    """Records which samples each rank sees in which step, in one file per rank in `folder`."""

    folder: Path

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        with open(self.folder / f"seen-{rank}.txt", "a", encoding="utf-8") as file:

            def note(module: Any, batch: Any) -> None:
                file.write(" ".join(map(str, [module.step, *batch["sample_ids"].tolist()])) + "\n")

            with before_each_micro_batch(note):
                yield

    def read(self) -> list[tuple[int, tuple[int, ...]]]:
        """Return each step, in the order of training, with the samples that all ranks saw in it."""
        seen: list[tuple[int, list[int]]] = []
        for number, file in enumerate(sorted(self.folder.glob("seen-*.txt"))):
            for position, (step, samples) in enumerate(_steps(file)):
                if number == 0:
                    seen.append((step, samples))
                else:
                    assert seen[position][0] == step
                    seen[position][1].extend(samples)
        return [(step, tuple(sorted(samples))) for step, samples in seen]


def _steps(file: Path) -> list[tuple[int, list[int]]]:
    """Return the steps of a rank with the samples of all their micro-batches."""
    steps: list[tuple[int, list[int]]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        step, *samples = map(int, line.split())
        if not steps or steps[-1][0] != step:
            steps.append((step, []))
        steps[-1][1].extend(samples)
    return steps


@dataclass(frozen=True)
class LivingModels:
    """Records how many models each rank holds in a step, in one file per rank in `folder`."""

    folder: Path
    step: int

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        # the collector knows nothing of what it leaves alone in a training
        living = weakref.WeakSet[Any]()

        def count(module: Any, batch: Any) -> None:
            living.add(module)
            if module.step == self.step:
                (self.folder / f"models-{rank}.txt").write_text(str(len(living)), encoding="utf-8")

        with before_each_micro_batch(count):
            yield

    def read(self) -> list[int]:
        return [int(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob("models-*.txt"))]


@dataclass(frozen=True)
class Planted:
    """Several plants in one."""

    plants: tuple[Plant, ...]

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        with ExitStack() as stack:
            for plant in self.plants:
                stack.enter_context(plant(rank))
            yield
