"""Saves and restores of as many ranks as one likes, in one process and by the product's own functions.

Each rank has the same number of elements whatever the number of ranks, so what it asks of the store can be compared.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from store_requests import counted_store
from torch import Tensor

from orchestrator.checkpoints import checkpoint, saves
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.retention import Retention
from orchestrator.distributed.layout import Group, Layout, end_to_end
from orchestrator.distributed.training_state import MASTER, MOMENTS, Fragment, StateReader
from orchestrator.storage.store import Storage

RUN = "big"
NUM_LAYERS = 12
WAYS = ("ddp", "zero1", "zero3")


@dataclass(frozen=True)
class Model:
    """Parameters in the order of GPT-2's: an embedding, and in each layer two matrices and four vectors."""

    num_elements: int

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of each parameter."""
        unit = self.num_elements // (NUM_LAYERS * 100 + 400)
        layer = {
            "norm.weight": unit // 4,
            "attention": 40 * unit,
            "bias": unit // 2,
            "norm2": unit // 4,
            "mlp": 58 * unit,
        }
        layers = {f"blocks.{i}.{name}": size for i in range(NUM_LAYERS) for name, size in layer.items()}
        sizes = {"embedding": 400 * unit, **layers}
        return {**sizes, "norm": self.num_elements - sum(sizes.values())}

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: [size] for name, size in self.sizes.items()}

    def layout(self, way: str, num_ranks: int) -> Layout:
        """Return how a strategy shares it out; ZeRO-1 has a group with weight decay and one without."""
        sizes = self.sizes
        if way == "ddp":
            return [end_to_end(sizes, num_ranks)]
        if way == "zero3":
            return [Group({name: 0}, -(-size // num_ranks)) for name, size in sizes.items()]
        decays = {name: "norm" not in name and "bias" not in name for name in sizes}
        return [
            end_to_end({name: size for name, size in sizes.items() if decays[name] is decay}, num_ranks)
            for decay in (True, False)
        ]


@dataclass
class RankState:
    """What one rank owns under a layout; each value tells the parameter, the kind and the element."""

    model: Model
    shares: Layout
    rank: int
    is_empty: bool = False
    tensors: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)

    def owned(self) -> Iterator[Fragment]:
        sizes = self.model.sizes
        for group in self.shares:
            for name, start, stop in group.held_by(self.rank, sizes):
                for kind in (MASTER, *MOMENTS):
                    yield Fragment(name, kind, start, stop, self._values(name, kind, start, stop))

    def _values(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        key = name, kind, start
        if key not in self.tensors:
            made = torch.zeros(stop - start) if self.is_empty else values_of(name, kind, start, stop)
            self.tensors[key] = made
        return self.tensors[key]

    def layout(self) -> Layout:
        return self.shares

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        reader.fill(self.owned())

    def complete(self) -> None:
        """Get nothing from the others: that is no matter of the store."""

    @property
    def is_right(self) -> bool:
        """Whether it holds what was saved."""
        return all(
            torch.equal(one.view, values_of(one.parameter, one.kind, one.start, one.stop)) for one in self.owned()
        )


def values_of(name: str, kind: str, start: int, stop: int) -> Tensor:
    """Return the elements [start, stop) of what is saved."""
    return torch.arange(start, stop, dtype=torch.float32) + len(name) + 0.5 * (MASTER, *MOMENTS).index(kind)


def save(storage: Storage, model: Model, way: str, num_ranks: int, step: int = 1) -> list[Counter[str]]:
    """Save with so many ranks; return what each asked of the store, rank 0 also for the commit."""
    layout, counts, writers = model.layout(way, num_ranks), [], []
    with patch.object(saves, "world_size", lambda: num_ranks), patch.object(saves.secrets, "token_hex", lambda _: "a1"):
        for rank in range(num_ranks):
            with patch.object(saves, "rank", lambda: rank), counted_store() as count:  # noqa: B023
                one = saves.Saves(storage, Attempt(RUN, 0, ""), "sync")
                one.begin(
                    RankState(model, layout, rank), model.shapes, Progress(step, 10), Retention(keep_every_steps=1)
                )
                writers.append(one._writer)
            counts.append(count)
        with counted_store() as count:
            errors = [writers[0].stored(), writers[0].committed()]
        assert errors == [None, None], errors
    counts[0] += count
    return counts


def restore(
    storage: Storage, model: Model, way: str, num_ranks: int, ranks: Iterable[int] | None = None
) -> dict[int, Counter[str]]:
    """Restore as so many ranks; return what each of some ranks asked of the store, rank 0 first of all."""
    answers: list[Any] = []
    layout = model.layout(way, num_ranks)

    def as_rank_0(action: Callable[[], Any]) -> Any:
        answers.append(action())
        return answers[-1]

    def of(rank: int) -> Counter[str]:
        replies = iter(answers)
        from_rank_0 = as_rank_0 if rank == 0 else lambda _: next(replies)
        state = RankState(model, layout, rank, is_empty=True)
        with counted_store() as count, patch.object(checkpoint, "from_rank_0", from_rank_0):
            assert checkpoint.restore(storage, RUN, state, model.shapes, print) is not None
        assert state.is_right, f"rank {rank} has got something else than was saved"
        return count

    return {rank: of(rank) for rank in (0, *(ranks or range(1, num_ranks)))}
