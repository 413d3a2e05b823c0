"""What rank 0 says before it tracks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.configuration.groups import TrackingConfig
from orchestrator.storage.store import Storage
from orchestrator.training import train


@pytest.mark.parametrize(("driver_has_key", "notes"), [(True, 1), (False, 0)])
def test_worker_without_the_key_that_its_driver_has_says_so(
    driver_has_key: bool, notes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(train, "make_tracker", lambda *_, **__: train.NullTracker())
    said: list[dict[str, Any]] = []
    config = SimpleNamespace(tracking=TrackingConfig(), model_dump=lambda mode: {})
    run = SimpleNamespace(name="x", wandb_run_id="x", folder="runs/x")
    job: Any = SimpleNamespace(config=config, run=run, driver_has_wandb_key=driver_has_key)
    runtime: Any = SimpleNamespace(rank=0, emit=said.append)
    train._tracker(job, Storage(str(tmp_path)), runtime)
    assert len(said) == notes
    assert all("the driver has a W&B key" in event["text"] and "WANDB_API_KEY" in event["text"] for event in said)
