"""A slow store delays no step: between two of them the training thread asks the store for nothing."""

import threading
from pathlib import Path
from typing import Any

import pytest
from jobs import begun_job
from tiny_run import write_text

from orchestrator.configuration.commands import PretrainConfig
from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.runs.events import EventLog
from orchestrator.storage.store import Storage
from orchestrator.training.train import train

pytestmark = pytest.mark.slow
STEPS = 12


def test_training_thread_asks_the_store_for_nothing_between_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"sequence_length": 16, "global_batch_size": 4, "log_interval_steps": 1, "val_interval_steps": 100}
    config = {
        "run": {"name": "tiny"},
        "storage": {"root": str(tmp_path)},
        "data": {"source": "files", "path": str(write_text(tmp_path / "text.txt")), "val_fraction": 0.0},
        "tokenizer": {"kind": "byte"},
        "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "max_positions": 16},
        "optimizer": {"warmup_steps": 2},
        "training": {"num_steps": STEPS, **sizes},
        "strategy": {"name": "single"},
        "checkpoint": {"interval": "auto"},
        "tracking": {"mode": "disabled"},
    }
    job = begun_job(PretrainConfig.model_validate(config))
    step: list[int] = []
    asked: list[tuple[int, str, str]] = []
    run = Storage._run

    def noting(storage: Storage, verb: str, name: str, action: Any) -> Any:
        if step and threading.current_thread() is threading.main_thread():
            asked.append((step[-1], verb, name))
        return run(storage, verb, name, action)

    def follow(event: Event) -> None:
        if event["kind"] in ("begin", "step"):
            step.append(event["step"])

    monkeypatch.setattr(Storage, "_run", noting)
    train(job, Runtime(emit=follow))
    assert [one for one in asked if one[0] < STEPS] == []
    kinds = [event["kind"] for event in EventLog(Storage(str(tmp_path)), "runs/tiny").read()]
    assert (kinds[0], kinds[-1], kinds.count("checkpoint")) == ("begin", "end", 2)
