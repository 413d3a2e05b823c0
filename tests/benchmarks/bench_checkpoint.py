"""Saving and restoring a training state on a local disk beside torch.save and torch.load of the same state.

25 million parameters with AdamW's moments, about 300 MB, one process. Both saves end with the data on the disk (fsync).
Ours also digests the file and commits it, here with `checkpoint.mode=sync`; our restore verifies what it reads.

Run: python tests/benchmarks/bench_checkpoint.py
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from modules.config import OptimizerConfig
from modules.model import GPT, initialize
from modules.model_config import ModelConfig
from modules.optimizer import build_optimizer, parameter_groups
from orchestrator.artifacts import artifact
from orchestrator.checkpoints import checkpoint
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.names import name_of
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.retention import Retention
from orchestrator.checkpoints.saves import Saves
from orchestrator.configuration.groups import StrategyConfig
from orchestrator.distributed.runtime import Runtime
from orchestrator.distributed.strategy import build_strategy
from orchestrator.distributed.training_state import TrainingState, training_state
from orchestrator.storage.store import Storage

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
MODEL = ModelConfig(num_layers=8, num_heads=8, hidden_dim=512, max_positions=256)
VOCAB_SIZE = 256
REPEATS = 5
RUN = "bench"


class Ours:
    """Through `orchestrator.checkpoints.checkpoint`, as `orchestrator.training.callbacks.checkpoints` calls it."""

    def __init__(self, folder: Path, model: GPT, optimizer: torch.optim.Optimizer) -> None:
        self._storage, self._model, self._optimizer = Storage(str(folder / "ours")), model, optimizer

        self._shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
        self._saves = Saves(self._storage, Attempt(RUN, 0, ""), "sync")

    def save(self) -> None:
        state = state_of(self._model, self._optimizer)
        self._saves.begin(state, self._shapes, Progress(step=1, tokens=1), Retention())
        assert self._saves.finish() is None

    def restore(self) -> None:
        state = state_of(self._model, self._optimizer)
        assert checkpoint.restore(self._storage, RUN, state, self._shapes, print)

    def remove(self) -> None:
        artifact.remove(self._storage, name_of(RUN, 1))


class Torch:
    """One file of both state dicts, as most training loops keep it."""

    def __init__(self, folder: Path, model: GPT, optimizer: torch.optim.Optimizer) -> None:
        self._folder, self._model, self._optimizer = folder / "torch", model, optimizer

    def save(self) -> None:
        self._folder.mkdir()
        with open(self._folder / "state.pt", "wb") as file:
            torch.save({"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())

    def restore(self) -> None:
        state = torch.load(self._folder / "state.pt", weights_only=True, mmap=False)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])

    def remove(self) -> None:
        shutil.rmtree(self._folder)


def main() -> list[Row]:
    """Medians in milliseconds, the two taking turns."""
    model, optimizer = trained_model()
    seconds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as folder:
        ways = [Ours(Path(folder), model, optimizer), Torch(Path(folder), model, optimizer)]
        for repeat in range(REPEATS + 1):
            for way in ways if repeat % 2 else reversed(ways):
                saved, restored = save_and_restore(way, model, optimizer)
                if repeat:  # the first warms up allocator and disk
                    seconds.setdefault(("save", type(way).__name__), []).append(saved)
                    seconds.setdefault(("restore", type(way).__name__), []).append(restored)
    return [_row(what, seconds[what, "Ours"], seconds[what, "Torch"]) for what in ("save", "restore")]


def save_and_restore(way: Ours | Torch, model: GPT, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Seconds of each; what is restored is compared with what was saved."""
    before = _fingerprint(model, optimizer)
    saved = _seconds(way.save)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
            optimizer.state[parameter]["exp_avg"].zero_()
    restored = _seconds(way.restore)
    assert _fingerprint(model, optimizer) == before, "something else was restored than had been saved"
    way.remove()
    return saved, restored


def trained_model(config: ModelConfig = MODEL) -> tuple[GPT, torch.optim.Optimizer]:
    """A model whose optimizer has made one step, and so has moments."""
    model = GPT(config, VOCAB_SIZE)
    initialize(model, seed=1)
    settings = OptimizerConfig()
    optimizer = build_optimizer(parameter_groups(model, settings), settings)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def state_of(model: GPT, optimizer: torch.optim.Optimizer) -> TrainingState:
    """The state as a fit on one process has it; of the trainer nothing but its strategy is asked for."""
    strategy = build_strategy(StrategyConfig(), Runtime(), OptimizerConfig(), "32")
    strategy.optimizers = [optimizer]
    return training_state(SimpleNamespace(strategy=strategy), model)


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _fingerprint(model: GPT, optimizer: torch.optim.Optimizer) -> list[float]:
    states = (optimizer.state[parameter] for parameter in model.parameters())
    moments = [state[kind] for state in states for kind in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach().double().sum().item() for tensor in (*model.parameters(), *moments)]


def _row(what: str, ours: list[float], peer: list[float]) -> Row:
    our_time, peer_time = 1000 * statistics.median(ours), 1000 * statistics.median(peer)
    num_bytes = 3 * 4 * sum(parameter.numel() for parameter in GPT(MODEL, VOCAB_SIZE).parameters())
    name = f"checkpoint {what}, {num_bytes / 1e6:.0f} MB, beside torch.{'save' if what == 'save' else 'load'} (ms)"
    return name, our_time, peer_time, our_time / peer_time


if __name__ == "__main__":
    for row in main():
        print("{:72s} {:10.1f} {:10.1f} {:8.2f}".format(*row))
