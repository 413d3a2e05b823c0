"""A tiny training by workers of a `WorkerPool`, whose steps, state and metrics are inspected from outside."""

import json
import shutil
from pathlib import Path
from typing import Any

from jobs import begun_job
from planted_faults import Plant, Planted
from tiny_run import go_back
from worker_pool import Outcome, WorkerPool

from modules.model_config import ModelConfig
from orchestrator.configuration.commands import PretrainConfig

STEPS, BATCH = 30, 8


class PoolRun:
    """A tiny training below `root`, saved after every step unless `checkpoint` says otherwise.

    Args:
        training: Fields of the section `training` that differ.
        optimizer: The same of `optimizer`.
        model: The section `model`, where it is another one; `tokenizer` belongs to it.
        deepspeed: DeepSpeed's own settings.
        val_fraction: Of the text.
    """

    def __init__(
        self,
        pool: WorkerPool,
        text: Path,
        root: Path,
        strategy: str,
        checkpoint: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        optimizer: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        tokenizer: dict[str, Any] | None = None,
        deepspeed: dict[str, Any] | None = None,
        val_fraction: float = 0.0,
        **guard: float,
    ) -> None:
        self._pool, self._root = pool, root
        self._config = PretrainConfig.model_validate(
            {
                "run": {"name": "tiny"},
                "storage": {"root": str(root)},
                "data": {"source": "files", "path": str(text), "split": "position", "val_fraction": val_fraction},
                "tokenizer": tokenizer or {"kind": "byte"},
                "model": model or {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "max_positions": 32},
                "optimizer": {"warmup_steps": 4, **(optimizer or {})},
                "training": {
                    "num_steps": STEPS,
                    "sequence_length": 32,
                    "global_batch_size": BATCH,
                    "micro_batch_size": 2,
                    "log_interval_steps": 1,
                    **(training or {}),
                },
                "guard": guard,
                "strategy": {"name": strategy, "deepspeed": deepspeed or {}},
                "cluster": {"num_workers": pool.world_size},
                "checkpoint": {"interval_steps": 1, "keep_last": STEPS, **(checkpoint or {})},
                "tracking": {"mode": "disabled"},
            }
        )

    @property
    def model(self) -> ModelConfig:
        assert self._config.model is not None
        return self._config.model

    def train(self, *planted: Plant) -> Outcome:
        return self._pool.train(begun_job(self._config), Planted(planted))

    def go_back_to(self, step: int) -> None:
        """Remove the checkpoints after `step` and the results of the run."""
        go_back(self._run, step)

    def copied_to(self, root: Path, at_step: int) -> Path:
        """Copy all that this run has stored, as if it had been interrupted after a step, and return `root`."""
        shutil.copytree(self._root, root)
        go_back(root / self._run.relative_to(self._root), at_step)
        return root

    def remove(self) -> None:
        """Remove all that this run has stored."""
        shutil.rmtree(self._root)

    @property
    def _run(self) -> Path:
        return self._root / "runs" / "tiny"

    def state(self, step: int) -> list[bytes]:
        """Return the weights and moments of each rank after `step` steps."""
        return [file.read_bytes() for file in self.files(step)]

    def files(self, step: int) -> list[Path]:
        """Return the file of each rank after `step` steps."""
        return sorted(self._run.glob(f"checkpoints/step_{step:08d}/*.safetensors"))

    def saved_steps(self) -> list[int]:
        """Return the steps of the committed checkpoints."""
        return sorted(int(file.parent.name[5:]) for file in self._run.glob("checkpoints/step_*/COMMITTED"))

    def weights(self) -> Path:
        return self._run / "model" / "model.safetensors"

    def metrics(self) -> dict[str, float]:
        return json.loads((self._run / "metrics.json").read_text())
