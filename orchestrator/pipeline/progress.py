"""How far the running stages are, for the table: step, loss and time left, from what the runs have written."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.display.stages import StageRow
from orchestrator.display.terminal import loss
from orchestrator.display.units import duration
from orchestrator.errors import OrchestratorError
from orchestrator.pipeline import places
from orchestrator.pipeline.child import RunningChild
from orchestrator.runs.state import RunState, read_run
from orchestrator.storage.store import Storage

Phase = Literal["waiting", "running", "done", "failed", "skipped", "stopped"]


@dataclass
class Progress:
    """How far one stage is."""

    phase: Phase = "waiting"
    why: str = ""
    """Why it waits, or how it has ended."""
    path: str = ""
    began: float | None = None
    seconds: float = 0.0
    was_done: bool = False
    """It was done before this command."""
    child: RunningChild | None = field(default=None, repr=False)


class Figures:
    """Reads the figures of running trainings, each at most once in a few seconds."""

    INTERVAL_SECONDS = 5.0

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._read: dict[str, tuple[float, tuple[str, str, str]]] = {}

    def rows(self, progress: Mapping[str, Progress]) -> list[StageRow]:
        """Return a row for each stage."""
        return [self._row(name, one) for name, one in progress.items()]

    def _row(self, name: str, one: Progress) -> StageRow:
        state = "done before" if one.was_done else one.phase
        figures = self._figures(one.path) if one.phase == "running" else ("", "", "")
        seconds = time.time() - one.began if one.phase == "running" and one.began else one.seconds
        why = one.why.splitlines()[0] if one.why else ""
        return StageRow(name, state, *figures, why=why, seconds=duration(seconds) if seconds else "")

    def _figures(self, path: str) -> tuple[str, str, str]:
        read, found = self._read.get(path, (0.0, ("", "", "")))
        if time.monotonic() - read > self.INTERVAL_SECONDS:
            try:
                found = _figures(self._storage, places.run_name(path))
            except OrchestratorError:  # a store in trouble must not end the pipeline
                found = ("", "", "")
            self._read[path] = (time.monotonic(), found)
        return found


def _figures(storage: Storage, run_name: str) -> tuple[str, str, str]:
    """Return step, loss and time left of a training, as they are shown."""
    state = read_run(storage, run_name)
    if state is None:
        return "", "", ""
    entry = _newest_entry(storage, run_name)
    metrics: Mapping[str, float] = entry.get("metrics", {})
    step, last = int(entry.get("step", state.step)), metrics.get("train/loss", state.loss)
    steps = f"{step}/{state.num_steps}" if state.num_steps else str(step)
    left = _left(state, step, metrics.get("throughput/step_seconds"))
    return steps, "" if last is None else loss(last), left


def _left(state: RunState, step: int, step_seconds: float | None) -> str:
    if not state.num_steps or not step_seconds:
        return ""
    return duration((state.num_steps - step) * step_seconds)


def _newest_entry(storage: Storage, run_name: str) -> dict[str, Any]:
    """Return the newest entry of a run's history with a loss; empty where there is none."""
    folder = f"runs/{run_name}/history"
    for name in reversed(storage.list(folder)):
        for line in reversed(storage.read_bytes(f"{folder}/{name}").decode(errors="replace").splitlines()):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "train/loss" in entry.get("metrics", {}):
                return entry
    return {}
