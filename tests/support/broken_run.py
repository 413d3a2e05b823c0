"""Runs that are broken on purpose: real processes, real signals, and a comparison with an unbroken run."""

import bisect
import os
import re
import resource
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from tiny_run import arguments

from orchestrator.runs.events import EventLog
from orchestrator.runs.history import read_history
from orchestrator.storage.store import Storage

STEPS = 80
TIMEOUT_SECONDS = 240
RECORDING = str(Path(__file__).parent / "recording")
"""On the PYTHONPATH of an interpreter, this folder makes each training there record the samples of its steps."""


def command(text: Path, root: Path, *others: str) -> list[str]:
    """Return the command of a run that is long enough to be broken and is saved every ten steps."""
    settings = [f"training.num_steps={STEPS}", f"training.val_interval_steps={STEPS}", "tracking.mode=disabled"]
    return arguments(text, root, "run.name=tiny", *settings, *others)


class BrokenRun:
    """A run in a process of its own, whose progress can be waited for."""

    program = ["orchestrator"]
    """The module that is started, with what comes before the command."""

    def __init__(self, command: list[str], largest_file_bytes: int | None = None, nohup: bool = False) -> None:
        """Start it; the system refuses to let any of its files grow beyond `largest_file_bytes`."""
        path = os.pathsep.join(filter(None, [RECORDING, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.program, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=_prepared(largest_file_bytes, nohup),
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

    def end(self, seconds: float = TIMEOUT_SECONDS) -> int:
        """Return the exit code; it must end within so many seconds."""
        out, _ = self.process.communicate(timeout=seconds)
        self.lines += out.splitlines()
        return self.process.returncode

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def workers(self) -> list[psutil.Process]:
        """Return the training processes: Ray's by their name, local ones as children of the process that forks them."""
        driver = psutil.Process(self.process.pid)
        direct = driver.children()
        found = {child: words_of(child) for child in driver.children(recursive=True)}
        of_ray = [child for child, words in found.items() if any("RayTrainWorker" in word for word in words)]
        return of_ray or [child for child, words in found.items() if child not in direct and _trains(words)]

    def signal_worker(self, number: int, which: int) -> None:
        """Send a signal to one worker."""
        workers = sorted(self.workers(), key=lambda worker: worker.pid)
        os.kill(workers[which % len(workers)].pid, number)

    def signal_all(self, number: int) -> None:
        """Send a signal to every process of the run, as Slurm does."""
        driver = psutil.Process(self.process.pid)
        for process in [*driver.children(recursive=True), driver]:
            process.send_signal(number)


def words_of(process: psutil.Process) -> list[str]:
    """Return the command line; empty for a process that has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _trains(words: list[str]) -> bool:
    return bool(words) and "orchestrator.checkpoints.writer_process" not in words


def _prepared(largest_file_bytes: int | None, nohup: bool) -> Callable[[], None]:
    def prepare() -> None:
        # regardless of how the tests themselves were started
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if largest_file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))

    return prepare


@dataclass(frozen=True)
class Finished:
    """The results by which a finished run is compared."""

    weights: bytes
    samples: dict[int, list[int]]


def finished(root: Path) -> Finished:
    """Return the final weights of a run and the samples of each step, and check that no step is missing.

    Its history has each of them, too, wherever an attempt was killed.
    """
    samples = samples_of_steps(root)
    assert list(samples) == list(range(1, len(samples) + 1))
    assert [entry.step for entry in read_history(Storage(str(root)), "tiny")] == list(samples)
    return Finished((root / "runs/tiny/model/model.safetensors").read_bytes(), samples)


def events(root: Path, kind: str) -> list[dict[str, Any]]:
    """Return the run's events of a kind, in order."""
    return EventLog(Storage(str(root)), "runs/tiny").read(kind)


def samples_of_steps(root: Path) -> dict[int, list[int]]:
    """Return the sorted samples of each step, as in the finished curve: those of the last attempt at the step.

    A sample that several ranks or micro-batches of one step received is listed once for each of them.
    """
    begins = [event["time"] for event in events(root, "begin")]
    attempts: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for file in (root / "samples").iterdir():
        rows = [line.split() for line in file.read_text().splitlines()]
        first = rows[0][1] if rows else None
        # in its first step a rank may be ahead of rank 0, which says that it begins, but not in the next one
        second_begun = next((float(seconds) for seconds, step, *_ in rows if step != first), 0.0)
        for seconds, step, *samples in rows:
            at = max(float(seconds), second_begun) if step == first else float(seconds)
            attempts[int(step)][bisect.bisect(begins, at)] += map(int, samples)
    return {step: sorted(attempts[step][max(attempts[step])]) for step in sorted(attempts)}


def losses(root: Path) -> dict[int, float]:
    """Return the loss of each step after which the run was saved, as in the finished curve."""
    return {event["step"]: event["loss"] for event in events(root, "checkpoint")}


def goes_on_from_the_last_checkpoint(root: Path) -> bool:
    """Return whether the second attempt began at the newest checkpoint, whose event may not have been written."""
    saved = events(root, "checkpoint")
    first, again = events(root, "begin")
    reported = max(event["step"] for event in saved if event["time"] < again["time"])
    return first["step"] == 0 and again["step"] in (reported, reported + 10)


KILL, TERMINATE, INTERRUPT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
