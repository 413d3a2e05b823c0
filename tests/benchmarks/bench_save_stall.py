"""What a save of 100 million parameters with AdamW's moments (1.2 GB, a local disk, one process) costs the training.

The stall of `checkpoint.mode=async` beside that of `sync` (asked for: a tenth), the time of a step while a save is
written beside that of a step without (at most 1 / 0.9 of it), and a restore beside reading the files' bytes once into
memory that nobody has touched yet, as a restore has to (at most 1.3 of it): from the disk, and from the system's cache.

Run: python tests/benchmarks/bench_save_stall.py
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from bench_checkpoint import state_of, trained_model
from torch import Tensor

from modules.model import GPT
from modules.model_config import ModelConfig
from orchestrator.checkpoints import checkpoint
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.names import name_of
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.retention import Retention
from orchestrator.checkpoints.saves import Saves
from orchestrator.storage.store import Storage

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
MODEL = ModelConfig(num_layers=8, num_heads=8, hidden_dim=1024, max_positions=256)
REPEATS = 5
RUN = "bench"
_TOKENS = 64


class Training:
    """Steps of a model, and its saves by one mode."""

    def __init__(self, root: str, mode: Literal["sync", "async"], model: GPT, optimizer: torch.optim.Optimizer) -> None:
        self.storage = Storage(f"{root}/{mode}")
        self.model, self.optimizer = model, optimizer
        self.shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
        self.saves = Saves(self.storage, Attempt(RUN, 0, ""), mode)
        self.saves.prepare(state_of(model, optimizer))
        self._number, self._waits = 0, mode == "sync"

    def stall(self) -> float:
        """Seconds that training waits for a save, which is finished afterwards without counting."""
        seconds = self._begin()
        if self._waits:
            return seconds + _seconds(self._finish)
        self._finish()
        return seconds

    def step_seconds_while_saving(self, step: Callable[[], None]) -> float:
        """Seconds of a step from the copy until the commit."""
        self._begin()
        num_steps, began = 0, time.perf_counter()
        while not self.saves.is_committed:
            step()
            num_steps += 1
        seconds = time.perf_counter() - began
        self._finish()
        return seconds / num_steps

    def restore(self) -> None:
        state = state_of(self.model, self.optimizer)
        assert checkpoint.restore(self.storage, RUN, state, self.shapes, print)

    def files(self) -> list[Path]:
        """Return those of the newest checkpoint."""
        folder = self.storage.local_path(name_of(RUN, self._number))
        assert folder is not None
        return [path for path in folder.rglob("*") if path.is_file()]

    def _begin(self) -> float:
        self._number += 1
        state = state_of(self.model, self.optimizer)
        progress = Progress(step=self._number, tokens=1)
        return _seconds(lambda: self.saves.begin(state, self.shapes, progress, Retention()))

    def _finish(self) -> None:
        error = self.saves.finish()
        assert error is None, error


def main() -> Iterator[Row]:
    """Medians in milliseconds, the two of each pair taking turns."""
    model, optimizer = trained_model(MODEL)
    tokens = torch.randint(256, (1, _TOKENS))
    with tempfile.TemporaryDirectory(prefix="bench-stall-") as root:
        ours, peer = (Training(root, mode, model, optimizer) for mode in ("async", "sync"))
        yield _row("stall of a save, 1.2 GB, async beside sync (ms)", ours.stall, peer.stall)
        yield _step_row(ours, lambda: _step(model, optimizer, tokens))
        for is_cached in (False, True):
            yield _restore_row(ours, is_cached)
        for training in (ours, peer):
            training.saves.close()


def _step(model: GPT, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    model(tokens).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def _step_row(training: Training, step: Callable[[], None]) -> Row:
    def alone() -> float:
        return statistics.median(_seconds(step) for _ in range(5))

    return _row(
        "step while a save is written, beside one without (ms)", lambda: training.step_seconds_while_saving(step), alone
    )


def _restore_row(training: Training, is_cached: bool) -> Row:
    def restored() -> float:
        _cache(training.files(), is_cached)
        return _seconds(training.restore)

    def read() -> float:
        _cache(training.files(), is_cached)
        return _seconds(lambda: [np.fromfile(path, dtype=np.uint8) for path in training.files()])

    where = "the cache" if is_cached else "the disk"
    return _row(f"restore, 1.2 GB, beside reading the bytes once, from {where} (ms)", restored, read)


def _cache(files: list[Path], is_cached: bool) -> None:
    for path in files:
        if is_cached:
            path.read_bytes()
        else:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _row(what: str, ours: Callable[[], float], peer: Callable[[], float]) -> Row:
    """Call each in turn, in alternating order; the first turn warms up."""
    seconds: dict[Callable[[], float], list[float]] = {ours: [], peer: []}
    for turn in range(REPEATS + 1):
        for way in (ours, peer) if turn % 2 else (peer, ours):
            measured = way()
            if turn:
                seconds[way].append(measured)
    our_time, peer_time = (1000 * statistics.median(seconds[way]) for way in (ours, peer))
    return what, our_time, peer_time, our_time / peer_time


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in main():
        print("{:60s} {:10.1f} {:10.1f} {:8.3f}".format(*row))
