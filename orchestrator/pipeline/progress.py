"""How far the running stages are, for the table: step, loss and time left, from what the runs have written."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
        self._first: dict[str, tuple[int, float]] = {}
        """The step at which each run was first seen, and when: from then on it tells its speed."""

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
                state = read_run(self._storage, places.run_name(path))
                found = self._shown(state) if state else ("", "", "")
            except OrchestratorError:  # a store in trouble must not end the pipeline
                found = ("", "", "")
            self._read[path] = (time.monotonic(), found)
        return found

    def _shown(self, state: RunState) -> tuple[str, str, str]:
        """Return step, loss and time left of a training, as they are shown."""
        step, num_steps = state.step, state.num_steps
        first_step, began = self._first.setdefault(state.run.name, (step, time.monotonic()))
        seconds = (time.monotonic() - began) / (step - first_step) if step > first_step else 0.0
        left = duration((num_steps - step) * seconds) if num_steps and seconds else ""
        return f"{step}/{num_steps}" if num_steps else str(step), "" if state.loss is None else loss(state.loss), left
