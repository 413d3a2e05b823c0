"""The state of a run, read from the files in its folder alone; no training library is imported for it."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.artifacts import artifact
from orchestrator.checkpoints.names import begun_steps, name_of
from orchestrator.distributed.runtime import Event
from orchestrator.errors import DamagedFileError, StorageError
from orchestrator.runs import lease
from orchestrator.runs.events import INJECTED, EventLog
from orchestrator.runs.goodput import Goodput, goodput
from orchestrator.runs.history import newest_figures
from orchestrator.runs.run import Run, find_run, folder_names
from orchestrator.storage.store import Storage

_NUM_READERS = 8


@dataclass(frozen=True)
class Fault:
    """An attempt that ended early."""

    time: float
    """In seconds since 1970."""
    text: str
    recovery_seconds: float | None
    """Until training began again; None if it has not."""


@dataclass(frozen=True)
class RunState:
    """The state of a run according to its files."""

    run: Run
    metrics: Mapping[str, float] | None
    """The final metrics; None until the run is complete."""
    events: tuple[Event, ...]
    """All events in order."""
    holder: Mapping[str, Any] | None
    """The live driver of a run that is not done, as in its lease; None without one."""
    newest: tuple[int, float | None] | None = None
    """The newest step of a run whose driver is alive, and its training loss; None if they are not known."""
    damage: str | None = None
    """Which file of it is damaged, and the remedy; then nothing else is known."""

    @property
    def state(self) -> Literal["damaged", "done", "running", "stopped", "interrupted"]:
        """Done; or a driver is alive; or the run saved and stopped on a notice; or it failed or was lost."""
        if self.damage is not None:
            return "damaged"
        if self.metrics is not None:
            return "done"
        if self.holder is not None:
            return "running"
        return "stopped" if self.events and self.events[-1]["kind"] == "stop" else "interrupted"

    @property
    def step(self) -> int:
        """Finished steps; for a run that is not done, as in its history, or in its last event with a step."""
        if self.metrics is not None and "progress/step" in self.metrics:
            return int(self.metrics["progress/step"])
        if self.newest is not None:
            return self.newest[0]
        return next((event["step"] for event in reversed(self.events) if "step" in event), 0)

    @property
    def num_steps(self) -> int | None:
        """The configured number of steps."""
        return self.run.recipe.get("training", {}).get("num_steps")

    @property
    def loss(self) -> float | None:
        """The last training loss; for a run that is not done, the newest in its history, or at its last checkpoint."""
        if self.metrics is not None:
            return self.metrics.get("train/loss")
        if self.newest is not None and self.newest[1] is not None:
            return self.newest[1]
        # a checkpoint after `step` was skipped or undone: the run continued from before it
        lasting = (event for event in reversed(self.events) if "loss" in event and event["step"] <= self.step)
        return next((event["loss"] for event in lasting), None)

    @property
    def goodput(self) -> Goodput:
        """How the run's time was spent until its last event."""
        return goodput(self.events)

    @property
    def faults(self) -> list[Fault]:
        """All faults in order."""
        return [
            Fault(event["time"], event["text"], self._seconds_until_begin(number))
            for number, event in enumerate(self.events)
            if event["kind"] == "fault"
        ]

    @property
    def injected(self) -> list[Event]:
        """All injected faults that have fired, in order."""
        return [event for event in self.events if event["kind"] == INJECTED]

    @property
    def skipped_steps(self) -> list[int]:
        """Bad steps, counted from 1, in order of occurrence, including those that a rollback has undone."""
        return [event["step"] + 1 for event in self.events if event["kind"] == "skip"]

    @property
    def rollbacks(self) -> list[Event]:
        """All rollbacks to a checkpoint after too many bad steps, in order."""
        return [event for event in self.events if event["kind"] == "rollback"]

    @property
    def num_preemptions(self) -> int:
        """Number of faults that were not failures: a node was taken away by its owner."""
        return sum(bool(event.get("preempted")) for event in self.events if event["kind"] == "fault")

    @property
    def worker_counts(self) -> list[int]:
        """Each number of workers that the run has had, in order; empty if it never changed."""
        resizes = [event for event in self.events if event["kind"] == "resize"]
        return [resizes[0]["from"], *(event["to"] for event in resizes)] if resizes else []

    def _seconds_until_begin(self, number: int) -> float | None:
        begins = (event["time"] for event in self.events[number:] if event["kind"] == "begin")
        begin = next(begins, None)
        return None if begin is None else begin - self.events[number]["time"]


def read_run(storage: Storage, name: str) -> RunState | None:
    """Return the state of the run of that name; None if there is none.

    Raises:
        DamagedFileError: its recipe or its metrics are damaged.
    """
    run = find_run(storage, name)
    if run is None:
        return None
    metrics = run.metrics(storage)
    # nobody asks who completes a run that is done: most are
    holder = lease.holder(storage, run.name) if metrics is None else None
    events = tuple(EventLog(storage, run.folder).read())
    newest = newest_figures(storage, run.name) if holder is not None else None
    # once more, and last: a run that ends in between then counts as done, not as interrupted
    metrics = run.metrics(storage) if metrics is None else metrics
    return RunState(run=run, metrics=metrics, events=events, holder=holder, newest=newest)


def read_runs(storage: Storage) -> list[RunState]:
    """Return the state of every run, the newest first; a damaged one does not hide the others."""

    def read(name: str) -> RunState | None:
        try:
            return read_run(storage, name)
        except (DamagedFileError, StorageError) as error:
            return RunState(Run(name, {}, ""), metrics=None, events=(), holder=None, damage=str(error))

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        found = [*pool.map(read, folder_names(storage))]
    states = [state for state in found if state is not None]
    return sorted(states, key=lambda state: state.events[0]["time"] if state.events else 0, reverse=True)


def checkpoints_of(storage: Storage, run_name: str) -> dict[int, bool]:
    """Return the steps of a run's checkpoints, and whether each is complete by its manifest and commit."""
    return {step: artifact.is_committed(storage, name_of(run_name, step)) for step in begun_steps(storage, run_name)}
