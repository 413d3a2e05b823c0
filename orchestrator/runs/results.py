"""What rank 0 makes of a run while it goes on: figures to W&B and to the progress display, and the last ones kept."""

import time

from torch import Tensor

from modules.data.tokenizer import Tokenizer
from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.errors import StoppedError, exit_code
from orchestrator.runs.events import EventLog
from orchestrator.runs.goodput import goodput, last_recovery
from orchestrator.runs.run import Run
from orchestrator.runs.tracking import Tracker
from orchestrator.storage.store import Storage


class Results:
    """Receives every figure of the run. On other ranks than 0 it keeps silent."""

    def __init__(
        self, run: Run, storage: Storage, tokenizer: Tokenizer, tracker: Tracker, runtime: Runtime, events: EventLog
    ) -> None:
        self._run, self._storage, self._tokenizer = run, storage, tokenizer
        self._tracker, self._runtime, self._events = tracker, runtime, events
        self._last: dict[str, float] = {}
        self._started = time.monotonic()
        self._is_underway = False

    def emit(self, event: Event) -> None:
        """Send an event to the progress display."""
        if self._runtime.rank == 0:
            self._runtime.emit(event)

    def events(self) -> list[Event]:
        """Return what has happened to the run until now."""
        return self._events.read()

    def start(self, num_steps: int) -> None:
        """Announce the training."""
        self.emit({"kind": "start", "run": self._run.name, "num_steps": num_steps})

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Take the figures of a step; the first one also tells how long it took to begin anew after a fault."""
        if not self._is_underway:
            metrics = {**metrics, **self._recovery()}
            self._is_underway = True
        self._last.update(metrics)
        self._tracker.log(metrics, step)
        self.emit({"kind": "step", "step": step, "metrics": metrics})

    def _recovery(self) -> dict[str, float]:
        seconds = last_recovery(self._events.read("fault", "begin"))
        return {} if seconds is None else {"faults/recovery_seconds": seconds}

    def validation(self, step: int, metrics: dict[str, float], samples: Tensor | None) -> None:
        """Take the figures of a validation, and token ids sampled after it, int64 [num_sequences, T]."""
        if self._runtime.rank:
            return
        self._last.update(metrics)
        self._tracker.log(metrics, step)
        if samples is not None:
            self._tracker.log_samples([self._tokenizer.decode(row.tolist()) for row in samples], step)
        self.emit({"kind": "validation", "step": step, "metrics": metrics})

    def stop(self, stop: StoppedError) -> None:
        """Tell that the training goes on another time."""
        self.emit({"kind": "stop", "step": stop.step, "signal": stop.signal_number, "text": str(stop)})
        self.pause(exit_code(stop.signal_number))

    def pause(self, exit_code: int = 0) -> None:
        """Close the W&B run of a training that goes on with other workers, or another time."""
        self._tracker.finish(self._last, exit_code=exit_code)
        if self._runtime.rank == 0:
            self._run.write_identity(self._storage, self._tracker.describe())

    def finish(self, data_name: str, step: int, training_seconds: float) -> None:
        """Keep the last figures, log model and data by reference, and close the W&B run.

        Args:
            training_seconds: Spent in steps since this training began.
        """
        seconds = time.monotonic() - self._started
        self.emit({"kind": "end", "step": step, "seconds": seconds, "training_seconds": training_seconds})
        self._last |= goodput(self._events.read()).metrics()
        self._tracker.log_artifact(self._run.name, "model", self._storage.url(self._run.model_name), self._run.recipe)
        self._tracker.log_artifact(data_name.rpartition("/")[2], "dataset", self._storage.url(data_name), {})
        self._tracker.finish(self._last)
        self._run.write_identity(self._storage, self._tracker.describe())
        self._run.write_metrics(self._storage, self._last)
