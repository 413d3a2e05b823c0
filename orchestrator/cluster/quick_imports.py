"""Imports of torch and what builds on it, without the search for garbage, which took a third of their time."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.distributed.runtime import Runtime
    from orchestrator.runs.run import Job


@contextmanager
def quick_imports() -> Iterator[None]:
    """Collect no garbage within: modules are kept, and each full collection looks at all that were imported before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def imported_train() -> "Callable[[Job, Runtime], None]":
    """Import what a worker does, and return it."""
    with quick_imports():
        from orchestrator.training.train import train
    return train
