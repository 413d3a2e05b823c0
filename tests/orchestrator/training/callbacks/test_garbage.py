"""Garbage is collected in steps that are the same on all ranks, and none is left for ever."""

import gc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from planted_faults import before_each_micro_batch
from tiny_run import arguments, write_text

from orchestrator.cli import main
from orchestrator.training.callbacks.garbage import GarbageCollection

INTERVAL, STEPS = 5, 20
PER_STEP = 1000
"""More objects than Python waits for before it collects."""
NOTHING: Any = None


class Cycle:
    """An object that only the collector frees."""

    alive = 0

    def __init__(self) -> None:
        self.own = self
        Cycle.alive += 1

    def __del__(self) -> None:
        Cycle.alive -= 1


class Collection(NamedTuple):
    step: int
    """Finished steps."""
    by_python: bool
    num_left: int
    """Cycles that are alive afterwards."""


@contextmanager
def collections() -> Iterator[list[Collection]]:
    """Make cycles in each step, each of which the next two steps use, too, and yield what is collected meanwhile."""
    modules: list[Any] = []
    seen: list[Collection] = []
    used: deque[list[Cycle]] = deque(maxlen=3)

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and modules:
            seen.append(Collection(modules[0].step, gc.isenabled(), Cycle.alive))

    def work(module: Any, batch: Any) -> None:
        if not modules:
            modules.append(module)
        used.append([Cycle() for _ in range(PER_STEP)])

    gc.callbacks.append(note)
    try:
        with before_each_micro_batch(work):
            yield seen
    finally:
        gc.callbacks.remove(note)


@pytest.mark.slow
def test_garbage_is_collected_in_due_steps_alone_and_does_not_grow(tmp_path: Path) -> None:
    settings = f"training.gc_interval_steps={INTERVAL}", "training.val_interval_steps=100", "tracking.mode=disabled"
    words = arguments(write_text(tmp_path / "text.txt"), tmp_path, f"training.num_steps={STEPS}", *settings)
    with collections() as seen:
        assert main(words) == 0
    assert [one.step for one in seen if not one.by_python] == [5, 10, 15, 20]
    assert [one.step for one in seen if one.by_python and one.step < STEPS] == []
    # a collection that looks at the young generations alone would leave those that it has once seen in use
    assert [one.num_left for one in seen if not one.by_python] == [3 * PER_STEP] * 4
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)


def test_python_collects_by_itself_outside_of_steps() -> None:
    collection = GarbageCollection(INTERVAL)
    with collection.by_python():  # the validation before the first step
        assert gc.isenabled()
    for end in (collection.on_train_end, collection.on_exception):
        collection.on_train_start(NOTHING, NOTHING)
        assert not gc.isenabled()
        with collection.by_python():
            assert gc.isenabled()
        assert not gc.isenabled()
        end(*[NOTHING] * (3 if end == collection.on_exception else 2))
        assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)
    with collection.by_python():
        assert gc.isenabled()
    assert gc.isenabled()
