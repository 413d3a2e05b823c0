"""What `orchestrator plan` says a worker's memory is, beside what two workers on the CPU take under every strategy.

Trained are models from nothing in each precision, once more in smaller micro-batches, and one from given weights: all
of it, and by adapters. A processor that emulates bfloat16 takes minutes for a step in it, so there all is in float32.

Measured is the highest resident memory of rank 0 from the start of a training to its third step, above what the same
process held before it (with everything imported, after a tiny training under the same strategy). Asked for: within a
tenth. malloc is told to return large blocks at once, so that what is resident is what is in use.

Run: python tests/benchmarks/bench_plan_memory.py [strategy ...]
"""

import ctypes
import gc
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from jobs import begun_job
from planted_faults import before_each_micro_batch
from precisions import measured_precisions
from worker_pool import WorkerPool

from modules.config import TokenizerConfig
from modules.data.tokenizer import build_tokenizer
from modules.huggingface.export import save_huggingface
from modules.model import GPT, initialize
from modules.model_config import ModelConfig
from orchestrator.configuration.commands import FinetuneConfig, PretrainConfig
from orchestrator.planning.memory import STRATEGIES, Strategy, memory, on_host_alone
from orchestrator.planning.setting import setting_of
from orchestrator.runs.run import Job

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
LAST_STEP = 2
TUNED = "llama 56M"
METHODS: dict[str, dict[str, Any] | None] = {"full": None, "lora": {"rank": 16}}
TINY = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "max_positions": 256}
_SENTENCE = "the quick brown fox jumps over the lazy dog\n"
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
    """Return the configuration of a training from nothing by two workers, or one with strategy=single."""
    text = root / "text.txt"
    text.write_text(_SENTENCE * 4000, encoding="utf-8")
    return PretrainConfig.model_validate(
        {
            **_common(root, name, strategy, precision, training),
            "data": {"source": "files", "path": str(text), "split": "position", "val_fraction": 0.0},
            "tokenizer": {"kind": "byte"},
            "model": model,
        }
    )


def tuning_of(
    root: Path, name: str, strategy: str, base: Path, lora: dict[str, Any] | None, precision: str
) -> FinetuneConfig:
    """Return the configuration of a training from given weights, whose rows fill their sequences."""
    rows = root / "rows.jsonl"
    rows.write_text(json.dumps({"text": _SENTENCE * 2000}) + "\n", encoding="utf-8")
    return FinetuneConfig.model_validate(
        {
            **_common(root, name, strategy, precision, {}),
            "data": {"source": "files", "path": str(rows), "val_fraction": 0.0},
            "task": {"name": "text_generation"},
            "finetune": {"num_epochs": None, "warmup_fraction": None, "keep": "last"},
            "model": {"path": str(base), "lora": lora},
        }
    )


def _common(root: Path, name: str, strategy: str, precision: str, training: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": {"name": name},
        "storage": {"root": str(root)},
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


def write_base(folder: Path, shape: dict[str, Any]) -> Path:
    """Write a model of a shape with random weights."""
    config = ModelConfig.model_validate(shape)
    assert config.vocab_size is not None
    model = GPT(config, config.vocab_size)
    initialize(model, seed=1)
    tokenizer = build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None)
    folder.mkdir()
    save_huggingface(folder, config, config.vocab_size, model.named_parameters(), end_ids=[tokenizer.end_of_text_id])
    tokenizer.save_for_transformers(folder, config.max_positions)
    return folder


def measured(pool: WorkerPool, job: Job) -> int:
    """Return rank 0's peak memory in a training above its baseline, in bytes."""
    probe = PeakMemory(Path(job.config.storage.root) / "peak.txt")
    outcome = pool.train(job, probe)
    if outcome.error:
        raise RuntimeError(outcome.error)
    return max(probe.read())


def predicted(job: Job) -> int:
    """Return what the plan says that a worker of this training takes."""
    config = job.config
    vocab_size = config.model.vocab_size
    assert vocab_size is not None
    assert config.strategy.name != "auto"
    return on_host_alone(memory(setting_of(config, vocab_size, "cpu"), config.strategy.name))


def trainings(
    root: Path, strategy: Strategy, precisions: Sequence[str]
) -> Iterator[tuple[str, PretrainConfig | FinetuneConfig]]:
    """Yield what is trained under a strategy, with its name: the shapes take turns, over strategies and precisions."""
    turn = STRATEGIES.index(strategy)
    for index, precision in enumerate(precisions):
        name = list(SHAPES)[(turn + index) % len(SHAPES)]
        yield f"{precision} {name}", config_of(root, f"of_{precision}", strategy, SHAPES[name], precision)
    name = list(SHAPES)[turn % len(SHAPES)]
    usual = "bf16" if "bf16" in precisions else "32"
    again = config_of(root, "accumulated", strategy, SHAPES[name], usual, micro_batch_size=2)
    yield f"{usual} {name}, micro-batches halved", again
    base = write_base(root / "base", SHAPES[TUNED])
    for method, lora in METHODS.items():
        yield f"{usual} {TUNED}, {method} fine-tuning", tuning_of(root, method, strategy, base, lora, usual)


def compared(strategy: Strategy, precisions: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """Yield what was measured under a strategy, with predicted and measured bytes."""
    taken = [each for each in precisions if each != "bf16-true" or strategy.startswith("zero")]
    pool = WorkerPool(1 if strategy == "single" else 2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for precision in taken:
                measured(pool, begun_job(config_of(Path(folder), f"tiny_{precision}", strategy, TINY, precision)))
            for name, config in trainings(Path(folder), strategy, taken):
                with redirect_stdout(StringIO()):  # what the preparation says to a user
                    job = begun_job(config)
                yield f"{strategy} {name}", predicted(job), measured(pool, job)
    finally:
        pool.close()


def main(strategies: Sequence[Strategy] = STRATEGIES) -> Iterator[Row]:
    """Show predicted and measured memory of each training, and yield the errors."""
    precisions = PRECISIONS if "bf16" in measured_precisions() else PRECISIONS[:1]
    with patch.dict(os.environ, MALLOC):  # of the workers alone
        for what, ours, seen in (each for strategy in strategies for each in compared(strategy, precisions)):
            print(f"{what:<48} {ours / 1e6:>7,.0f} {seen / 1e6:>7,.0f} MB {ours / seen:>6.3f}", flush=True)
            yield f"plan: error of the memory of {what} (%)", 100 * abs(ours / seen - 1), 10.0


if __name__ == "__main__":
    list(main(sys.argv[1:] or STRATEGIES))  # type: ignore[arg-type]
