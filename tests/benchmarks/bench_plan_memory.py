"""What `orchestrator plan` says a worker's memory is, beside what two workers on the CPU take under every strategy.

Measured is the highest resident memory of rank 0 from the start of a training to its fourth step, above what the same
process held before it (with everything imported, after a tiny training under the same strategy). Asked for: within a
tenth. malloc is told to return large blocks at once, so that what is resident is what is in use.

Run: python tests/benchmarks/bench_plan_memory.py [strategy ...]
"""

import ctypes
import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from jobs import begun_job
from planted_faults import before_each_micro_batch
from worker_pool import WorkerPool

from orchestrator.configuration.commands import PretrainConfig
from orchestrator.planning.memory import STRATEGIES, Strategy, memory, on_host_alone
from orchestrator.planning.setting import setting_of

Row = tuple[str, float, float]
"""What was measured (unit), the plan's error, and what was asked for."""
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2 55M": {"num_layers": 10, "num_heads": 10, "hidden_dim": 640, "max_positions": 256, "vocab_size": 8192},
    "llama 56M": {
        "family": "llama",
        "num_layers": 8,
        "num_heads": 8,
        "num_kv_heads": 4,
        "hidden_dim": 640,
        "mlp_dim": 1792,
        "max_positions": 256,
        "vocab_size": 16384,
        "tie_embeddings": False,
    },
}
PRECISIONS = ("32", "bf16", "bf16-true")
LAST_STEP = 3
TINY = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "max_positions": 256}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class PeakMemory:
    """Writes rank 0's resident memory before a training, and its peak until `LAST_STEP`, into a file."""

    file: Path

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; see proc(5)
        peaks: list[int] = []

        def note(module: Any, batch: Any) -> None:
            if rank == 0 and module.step <= LAST_STEP:
                peaks.append(_status("VmHWM"))
                self.file.write_text(" ".join(map(str, [before, *peaks])))

        with before_each_micro_batch(note):
            yield

    def read(self) -> tuple[int, ...]:
        """Return the peaks of resident memory above the baseline in bytes, by the start of each micro-batch."""
        before, *peaks = map(int, self.file.read_text().split())
        return tuple(peak - before for peak in peaks)


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def config_of(
    root: Path, name: str, strategy: str, model: dict[str, Any], precision: str = "32", **training: Any
) -> PretrainConfig:
    """Return the configuration of a training by two workers, or one with strategy=single."""
    text = root / "text.txt"
    if not text.exists():
        text.write_text("the quick brown fox jumps over the lazy dog\n" * 4000, encoding="utf-8")
    return PretrainConfig.model_validate(
        {
            "run": {"name": name},
            "storage": {"root": str(root)},
            "data": {"source": "files", "path": str(text), "split": "position", "val_fraction": 0.0},
            "tokenizer": {"kind": "byte"},
            "model": model,
            "optimizer": {"warmup_steps": 2},
            "training": {
                "num_steps": LAST_STEP + 1,
                "sequence_length": 128,
                "global_batch_size": 8,
                "micro_batch_size": 4,
                "precision": precision,
                **training,
            },
            "strategy": {"name": strategy},
            "cluster": {"num_workers": 1 if strategy == "single" else 2},
            "checkpoint": {"interval_steps": 1000},
            "tracking": {"mode": "disabled"},
        }
    )


def measured(pool: WorkerPool, config: PretrainConfig) -> tuple[int, ...]:
    """Return rank 0's peak memory in a training above its baseline, in bytes, by the start of each micro-batch."""
    probe = PeakMemory(Path(config.storage.root) / "peak.txt")
    outcome = pool.train(begun_job(config), probe)
    if outcome.error:
        raise RuntimeError(outcome.error)
    return probe.read()


def predicted(config: PretrainConfig) -> int:
    """Return what the plan says that a worker of this training takes."""
    vocab_size = config.model.vocab_size
    assert vocab_size is not None
    assert config.strategy.name != "auto"
    return on_host_alone(memory(setting_of(config, vocab_size, "cpu"), config.strategy.name))


def compared(strategy: Strategy) -> Iterator[tuple[str, float, float]]:
    """Yield what was measured, with predicted and measured bytes, for each precision and shape under a strategy."""
    pool = WorkerPool(1 if strategy == "single" else 2)
    try:
        for precision in PRECISIONS:
            if precision.endswith("true") and not strategy.startswith("zero"):
                continue
            with tempfile.TemporaryDirectory() as folder:
                measured(pool, config_of(Path(folder), "tiny", strategy, TINY, precision))
                for name, shape in SHAPES.items():
                    config = config_of(Path(folder), name.replace(" ", "_"), strategy, shape, precision)
                    yield f"{strategy} {precision} {name}", predicted(config), max(measured(pool, config))
    finally:
        pool.close()


def main(strategies: Sequence[Strategy] = STRATEGIES) -> list[Row]:
    """Show predicted and measured memory of each training, and return the errors."""
    rows = []
    with patch.dict(os.environ, MALLOC):  # of the workers alone
        for what, ours, seen in (each for strategy in strategies for each in compared(strategy)):
            print(f"{what:<36} {ours / 1e6:>7,.0f} {seen / 1e6:>7,.0f} MB {ours / seen:>6.3f}", flush=True)
            rows.append((f"plan: error of the memory of {what} (%)", 100 * abs(ours / seen - 1), 10.0))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:] or STRATEGIES)  # type: ignore[arg-type]
