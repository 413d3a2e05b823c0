"""The metrics of a running training: rank 0 sends them to W&B and to the progress display, and writes the last ones."""

import time
from typing import Any, Literal

from modules.data.tokenizer import Tokenizer
from orchestrator.artifacts import artifact
from orchestrator.distributed.runtime import Event, Runtime
from orchestrator.errors import StoppedError, exit_code
from orchestrator.runs.event_writer import EventWriter
from orchestrator.runs.goodput import goodput, last_recovery
from orchestrator.runs.run import Run
from orchestrator.runs.tracking import Tracker
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage


class Results:
    """Receives all metrics of the run; ranks other than 0 show, track and write nothing."""

    def __init__(
        self, run: Run, storage: Storage, tokenizer: Tokenizer, tracker: Tracker, runtime: Runtime, events: EventWriter
    ) -> None:
        self._run, self._storage, self._tokenizer = run, storage, tokenizer
        self._tracker, self._runtime, self._events = tracker, runtime, events
        self._last: dict[str, float] = {}
        self._validations: dict[int, dict[str, float]] = {}
        self._started = time.monotonic()
        self._is_recovery_known = False
        self._num_steps = 0
        self._has_noted_samples = False

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each metric so far, by name."""
        return dict(self._last)

    def validation_after(self, step: int) -> dict[str, float]:
        """Return the metrics of the validation after a step; empty if it was before this process began."""
        return self._validations.get(step, {})

    def emit(self, event: Event) -> None:
        """Send an event to the progress display."""
        if self._runtime.rank == 0:
            self._runtime.emit(event)

    def events_so_far(self) -> list[Event] | None:
        """Return the events of the run so far, on rank 0; None until those of earlier attempts are read."""
        return self._events.so_far()

    def start(self, num_steps: int) -> None:
        """Report that the training starts."""
        self._num_steps = num_steps
        root = redact(self._storage.url())
        self.emit({"kind": "start", "run": self._run.name, "num_steps": num_steps, "root": root})

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Report the metrics of a step; those of one of the first steps include the recovery time after a fault."""
        metrics = {**metrics, **self._recovery()}
        self._last.update(metrics)
        self._tracker.log(metrics, step)
        self.emit({"kind": "step", "step": step, "metrics": metrics})

    def _recovery(self) -> dict[str, float]:
        """Return the time to report, once: as soon as the events before are read, for which no step waits."""
        events = None if self._is_recovery_known else self._events.so_far()
        if events is None:
            return {}
        self._is_recovery_known = True
        seconds = last_recovery(events)
        return {} if seconds is None else {"faults/recovery_seconds": seconds}

    def validation(
        self, step: int, metrics: dict[str, float], samples: list[list[int]], samples_note: str | None = None
    ) -> None:
        """Report the metrics of a validation, and the tokens of samples, each with its prompt.

        Args:
            samples_note: In what the samples differ from what is usual; it is kept with them, and shown once.
        """
        if self._runtime.rank:
            return
        self._last.update(metrics)
        self._validations[step] = metrics
        self._tracker.log(metrics, step)
        found: Event = {"kind": "validation", "step": step, "metrics": metrics}
        texts = [self._tokenizer.decode(row) for row in samples]
        if texts:
            self._tracker.log_samples(texts, step)
            found["samples"] = texts
        if samples_note is not None:
            found["samples_note"] = samples_note
            if not self._has_noted_samples:
                self.emit({"kind": "note", "text": samples_note})
            self._has_noted_samples = True
        self.emit(found)

    def stop(self, stop: StoppedError) -> None:
        """Report that the training was stopped and can be continued later."""
        self.emit({"kind": "stop", "step": stop.step, "signal": stop.signal_number, "text": str(stop)})
        self.pause(exit_code(stop.signal_number))

    def pause(self, exit_code: int = 0) -> None:
        """Close the W&B run of a training that continues with other workers or later."""
        self._tracker.finish(self._last, exit_code=exit_code)
        if self._runtime.rank == 0:
            self._run.write_identity(self._storage, self._tracker.describe())

    def finish(self, data_name: str, step: int, exported_step: int, training_seconds: float) -> None:
        """Write the final metrics, link data and model to the W&B run, and close it.

        Args:
            exported_step: The step of the exported model.
            training_seconds: Time spent in steps since this training began.
        """
        seconds = time.monotonic() - self._started
        self.emit({"kind": "end", "step": step, "seconds": seconds, "training_seconds": training_seconds})
        self._last |= goodput(self._events.all()).metrics()
        if step < self._num_steps:
            self._last["progress/stopped_early"] = 1.0
        if exported_step != step:
            self._last = {**self._without_validation(), **self.validation_after(exported_step)}
            self._last["progress/exported_step"] = exported_step
        self._link(data_name.rpartition("/")[2], "dataset", data_name, {})
        what = {"step": exported_step, "data": data_name, "recipe": self._run.recipe}
        self._link(self._run.name, "model", self._run.model_name, what)
        self._tracker.finish(self._last)
        self._run.write_identity(self._storage, self._tracker.describe())
        self._run.write_metrics(self._storage, self._last)

    def _without_validation(self) -> dict[str, float]:
        """Return the last metrics without those of the model after the last step, which is not the exported one."""
        return {name: value for name, value in self._last.items() if not name.startswith("val/")}

    def _link(self, name: str, kind: Literal["dataset", "model"], place: str, what: dict[str, Any]) -> None:
        if artifact.is_committed(self._storage, place):
            content = artifact.content(self._storage, place)
            self._tracker.link(name, kind, self._storage.url(place), content["manifest_xxh3_128"], {**content, **what})
