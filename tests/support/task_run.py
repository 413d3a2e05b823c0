"""A tiny fine-tuning by workers of a `WorkerPool`, on rows that are made here."""

import json
import random
from pathlib import Path
from typing import Any

from pool_run import PoolRun
from worker_pool import WorkerPool

from orchestrator.configuration.commands import FinetuneConfig

STEPS, BATCH, LENGTH = 6, 6, 64
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
_SPLITS = ("train",) * 6 + ("val", "test")


def write_rows(path: Path, number: int = 80) -> Path:
    """Write rows of unequal length that every task can use, and return their file."""
    random.seed(1)
    with path.open("w") as file:
        for index in range(number):
            words = random.choices(WORDS, k=random.randint(1, 9))
            text = " ".join(words)
            row = {
                "text": text,
                "label": "short" if len(words) < 4 else "long" if len(words) > 6 else "middle",
                "source": text,
                "target": " ".join(reversed(words)),
                "split": _SPLITS[index % len(_SPLITS)],
            }
            file.write(json.dumps(row) + "\n")
    return path


class TaskRun(PoolRun):
    """A tiny fine-tuning below `root`, saved after every step.

    Args:
        base: The folder of the model that learns.
        rows: The file of the rows.
        task: The section `task`.
        groups: Other sections, whose fields are merged into those of this class.
    """

    def __init__(
        self, pool: WorkerPool, root: Path, strategy: str, base: Path, rows: Path, task: dict[str, Any], **groups: Any
    ) -> None:
        self._pool, self._root = pool, root
        sections: dict[str, dict[str, Any]] = {
            "run": {"name": "tiny"},
            "storage": {"root": str(root)},
            "model": {"path": str(base)},
            "data": {"source": "files", "path": str(rows)},
            "task": task,
            "finetune": {"num_epochs": None, "warmup_fraction": None, "keep": "last"},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
            "training": {
                "num_steps": STEPS,
                "sequence_length": LENGTH,
                "global_batch_size": BATCH,
                "micro_batch_size": 1,
                "log_interval_steps": 1,
            },
            "strategy": {"name": strategy},
            "cluster": {"num_workers": pool.world_size},
            "checkpoint": {"interval_steps": 1, "keep_last": STEPS, "mode": "sync"},
            "tracking": {"mode": "disabled"},
        }
        merged = {name: {**sections.get(name, {}), **groups.get(name, {})} for name in {**sections, **groups}}
        self._config = FinetuneConfig.model_validate(merged)
