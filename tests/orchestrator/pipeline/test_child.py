"""A child dies with its driver and with the stage's lease, and its output is kept."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from waiting import eventually

from orchestrator.checkpoints.attempt import STAGES, Attempt
from orchestrator.pipeline.child import Child, Order, last_error
from orchestrator.storage.store import Storage

ROOT = Path(__file__).resolve().parents[3]
_DRIVER = """
import json, sys
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.pipeline import child
child._COMMAND = [sys.executable, "-c", sys.argv[2]]
order = json.loads(sys.argv[1])
one = child.Child(child.Order(**{**order, "attempt": Attempt(**order["attempt"])}))
print(one._process.pid, flush=True)
one.wait()
"""
_STAGE = """
import subprocess, sys, time
from orchestrator.pipeline.child import followed_driver
with followed_driver():
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("worker", worker.pid, flush=True)
    time.sleep(600)
"""


def order(root: Path) -> Order:
    return Order(str(root), "runs/p/a-01234567", (), Attempt("0" * 16, 0, "", STAGES), num_threads=3)


@pytest.mark.slow
def test_a_child_and_its_workers_die_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    about = json.dumps(asdict(order(tmp_path)))
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, about, _STAGE], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert driver.stdout is not None
    child = psutil.Process(int(driver.stdout.readline()))
    log = tmp_path / "runs/p/a-01234567/log.txt"
    assert eventually(lambda: "worker " in log.read_text())
    worker = psutil.Process(int(log.read_text().split("worker ")[1].split()[0]))
    assert os.getpgid(child.pid) == child.pid
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    worker.kill()


def test_the_output_of_each_attempt_is_added_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os; print('threads', os.environ['OMP_NUM_THREADS']); print('error: no room'); raise SystemExit(2)"
    monkeypatch.setattr("orchestrator.pipeline.child._COMMAND", [sys.executable, "-c", script])
    assert [Child(order(tmp_path)).wait() for _ in range(2)] == [2, 2]
    text = (tmp_path / "runs/p/a-01234567/log.txt").read_text()
    assert text.count("threads 3") == 2
    assert text.count("--- ") == 2
    assert last_error(Storage(str(tmp_path)), "runs/p/a-01234567") == "no room"


def test_the_log_of_a_remote_store_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.pipeline.child._COMMAND", [sys.executable, "-c", "print('said')"])
    remote = Order("memory://logs", "runs/p/a", (), Attempt("0" * 16, 0, "", STAGES), num_threads=1)
    assert [Child(remote).wait() for _ in range(2)] == [0, 0]
    assert Storage("memory://logs").read_bytes("runs/p/a/log.txt").count(b"said") == 2


def test_what_a_child_has_started_does_not_outlive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    )
    monkeypatch.setattr("orchestrator.pipeline.child._COMMAND", [sys.executable, "-c", script])
    assert Child(order(tmp_path)).wait() == 0
    pid = int((tmp_path / "runs/p/a-01234567/log.txt").read_text().split()[-1])
    assert eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
