"""A single worker, which is its own driver, ends after the grace period, whatever it is doing."""

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TRAINING = """
import signal, sys, time
from orchestrator.cluster.notices import ended_after_grace
received = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: received.append(number))
with ended_after_grace(0.5):
    print("trains", flush=True)
    while not received:
        time.sleep(0.01)
    while sys.argv[1] == "hangs":
        time.sleep(0.01)
time.sleep(1)
"""


@pytest.mark.parametrize(
    ("what", "number", "code"),
    [("hangs", signal.SIGTERM, 143), ("hangs", signal.SIGINT, 130), ("saves", signal.SIGTERM, 0)],
)
def test_worker_that_hangs_in_a_stop_is_ended_after_its_grace(what: str, number: int, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "trains\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert ("not saved within checkpoint.grace_seconds=0.5" in said) == (code != 0)


BLOCKED = """
import os, signal
from orchestrator.cluster.notices import ended_after_grace
signal.signal(signal.SIGTERM, lambda *_: None)
signal.siginterrupt(signal.SIGTERM, False)
reading, writing = os.pipe()
with ended_after_grace(0.5):
    print("trains", flush=True)
    os.read(reading, 1)
"""


def test_worker_that_hangs_within_one_instruction_is_ended_too() -> None:
    command = [sys.executable, "-c", BLOCKED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "trains\n"
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "SIGTERM: not saved within" in said
