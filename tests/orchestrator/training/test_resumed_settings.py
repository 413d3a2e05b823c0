"""Settings that change what a step computes, or where its state is held: a run continues with them bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import begun_job
from tiny_run import go_back, write_text
from worker_pool import Outcome, Pools

from orchestrator.configuration.commands import PretrainConfig

pytestmark = pytest.mark.slow

STEPS = 8
CASES: list[tuple[str, str, int, dict[str, Any]]] = [
    *(
        ("dropout", name, workers, {"model": {"dropout": 0.2}})
        for name, workers in (("single", 1), ("ddp", 2), ("zero3", 2))
    ),
    *(("documents", name, 2, {"training": {"attention_scope": "document"}}) for name in ("ddp", "zero2")),
    *(("offload", name, workers, {}) for name in ("zero2_offload", "zero3_offload") for workers in (1, 2)),
]


def config(root: Path, text: Path, strategy: str, workers: int, changes: dict[str, Any]) -> PretrainConfig:
    fields: dict[str, Any] = {
        "run": {"name": "tiny"},
        "storage": {"root": str(root)},
        "data": {"source": "files", "path": str(text), "val_fraction": 0.0},
        "tokenizer": {"kind": "byte"},
        "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "max_positions": 32},
        "optimizer": {"warmup_steps": 2},
        "training": {"num_steps": STEPS, "sequence_length": 32, "global_batch_size": 8, "micro_batch_size": 2},
        "strategy": {"name": strategy},
        "cluster": {"num_workers": workers},
        "checkpoint": {"mode": "sync", "interval_steps": STEPS // 2, "keep_last": 5},
        "tracking": {"mode": "disabled"},
    }
    for group, values in {"training": {"log_interval_steps": 1}, **changes}.items():
        fields[group] = {**fields[group], **values}
    return PretrainConfig.model_validate(fields)


@pytest.mark.parametrize(("what", "strategy", "workers", "changes"), CASES, ids=lambda value: str(value))
def test_resumed_run_continues_bit_for_bit(
    pools: Pools, tmp_path: Path, what: str, strategy: str, workers: int, changes: dict[str, Any]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        write_text(folder / f"{number}.txt", num_words=20 + number)

    def trained(root: Path) -> tuple[Outcome, bytes]:
        outcome = pools[workers].train(begun_job(config(root, folder, strategy, workers, changes)))
        assert outcome.error is None, outcome.error
        return outcome, (root / "runs/tiny/model/model.safetensors").read_bytes()

    whole, weights = trained(tmp_path / "whole")
    half = shutil.copytree(tmp_path / "whole", tmp_path / "half")
    go_back(half / "runs/tiny", STEPS // 2)
    resumed, again = trained(half)
    assert again == weights
    expected = {step: loss for step, loss in whole.losses().items() if step > STEPS // 2}
    assert resumed.losses() == expected
