"""Goodput of a run whose workers are killed again and again, beside what its own costs allow."""

import random
import time
from pathlib import Path

import pytest
from broken_run import KILL, BrokenRun, command, events
from tiny_run import write_text
from waiting import eventually

from orchestrator.planning.save_interval import goodput_bound
from orchestrator.runs.events import EventLog
from orchestrator.runs.goodput import goodput
from orchestrator.storage.store import Storage

KILL_EVERY_SECONDS = 60
NUM_STEPS = 100_000


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_goodput_under_kills_is_near_its_bound(tmp_path: Path) -> None:
    """About one SIGKILL a minute for ten minutes; `goodput_bound` of its own C, M and R."""
    chance = random.Random(0)
    text = write_text(tmp_path / "text.txt")
    settings = ["strategy=ddp", "cluster.num_workers=2", "cluster.max_failures=100", "objective=clm"]
    lasting = [f"training.num_steps={NUM_STEPS}", "training.val_interval_steps=100000", "checkpoint.interval=auto"]
    mtbf = [f"checkpoint.mtbf_seconds={KILL_EVERY_SECONDS}", "training.log_interval_steps=1000"]
    with BrokenRun(command(text, tmp_path / "outputs", *settings, *lasting, *mtbf)) as run:
        run.wait_for_step(1)
        began = time.monotonic()
        while time.monotonic() - began < 600:
            time.sleep(min(chance.expovariate(1 / KILL_EVERY_SECONDS), 2 * KILL_EVERY_SECONDS))
            assert eventually(lambda: len(run.workers()) == 2, seconds=60)
            run.signal_worker(KILL, chance.randrange(2))
        assert eventually(lambda: len(run.workers()) == 2, seconds=60)
        run.process.terminate()
        assert run.end() == 143, run.said
    seen = EventLog(Storage(str(tmp_path / "outputs")), "runs/tiny").read()
    figures = goodput(seen)
    faults, saves = events(tmp_path / "outputs", "fault"), events(tmp_path / "outputs", "checkpoint")
    cost = sum(save["seconds"] for save in saves) / len(saves)
    mtbf_seconds = figures.wall_seconds / len(faults)
    recovery = sum(figures.recovery_seconds) / len(figures.recovery_seconds)
    bound = goodput_bound(cost, mtbf_seconds, recovery)
    costs = f"C {cost:.3f} s, M {mtbf_seconds:.1f} s, R {recovery:.2f} s"
    print(f"goodput {figures.fraction:.3f}, bound {bound:.3f}: {costs}, {len(faults)} faults, {len(saves)} saves")
    assert figures.fraction > 0.9 * bound
