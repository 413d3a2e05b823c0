"""Runs that are broken on purpose: real processes, real signals, and a comparison with an unbroken run."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from tiny_run import arguments

STEPS = 80
TIMEOUT_SECONDS = 240


def command(text: Path, root: Path, *others: str) -> list[str]:
    """Return a run that is long enough to be broken, saved every ten steps."""
    settings = [f"training.num_steps={STEPS}", f"training.val_interval_steps={STEPS}", "tracking.mode=disabled"]
    return arguments(text, root, "run.name=tiny", *settings, *others)


class BrokenRun:
    """A run in a process of its own, whose progress can be waited for."""

    def __init__(self, command: list[str], largest_file_bytes: int | None = None) -> None:
        """Start it; the system refuses to let any of its files grow beyond `largest_file_bytes`."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=_limit(largest_file_bytes) if largest_file_bytes else None,
        )
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no process behind, whatever went wrong."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.communicate()

    def wait_for(self, pattern: str) -> str:
        """Return the next line that matches."""
        assert self.process.stdout is not None
        for line in iter(self.process.stdout.readline, ""):
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line {pattern!r}:\n{self.said}")

    def wait_for_step(self, step: int) -> None:
        """Wait until at least `step` steps are done."""
        while int(re.findall(r"step +(\d+)/", self.wait_for(r"^step +\d+/"))[0]) < step:
            pass

    def end(self) -> int:
        """Return the exit code."""
        out, _ = self.process.communicate(timeout=TIMEOUT_SECONDS)
        self.lines += out.splitlines()
        return self.process.returncode

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def workers(self) -> list[psutil.Process]:
        """Return the training processes: of Ray by their name, else the children of the process that forks them."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        of_ray = [child for child in children if child.is_running() and "RayTrainWorker" in " ".join(child.cmdline())]
        driver = psutil.Process(self.process.pid)
        return of_ray or [child for child in children if child.parent() != driver and not _writes_checkpoints(child)]

    def signal_worker(self, number: int, which: int) -> None:
        """Send a signal to one worker."""
        workers = sorted(self.workers(), key=lambda worker: worker.pid)
        os.kill(workers[which % len(workers)].pid, number)


def _writes_checkpoints(process: psutil.Process) -> bool:
    return "orchestrator.writer_process" in process.cmdline()


def _limit(num_bytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def weights(root: Path) -> bytes:
    """Return the exported weights."""
    return (root / "runs/tiny/model/model.safetensors").read_bytes()


def events(root: Path, kind: str) -> list[dict[str, Any]]:
    """Return the run's events of a kind, in order."""
    found = [json.loads(path.read_text()) for path in sorted((root / "runs/tiny/events").glob("*.json"))]
    return [event for event in found if event["kind"] == kind]


def losses(root: Path) -> dict[int, float]:
    """Return the loss of each step after which the run was saved, as the finished curve has it."""
    return {event["step"]: event["loss"] for event in events(root, "checkpoint")}


def goes_on_from_the_last_checkpoint(root: Path) -> bool:
    """Whether the second beginning is at the newest checkpoint before it, which may not have been told any more."""
    saved = events(root, "checkpoint")
    first, again = events(root, "begin")
    told = max(event["step"] for event in saved if event["time"] < again["time"])
    return first["step"] == 0 and again["step"] in (told, told + 10)


def eventually(holds: Callable[[], object], seconds: float = 10) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


KILL, TERMINATE, INTERRUPT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
