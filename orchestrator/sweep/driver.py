"""Runs the trials of a sweep side by side as far as resources go, each a child process that is a run of its own."""

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Protocol

from orchestrator.checkpoints.attempt import Attempt
from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.errors import ConfigError, LeaseLostError, OrchestratorError, TrialError
from orchestrator.pipeline import children, places
from orchestrator.pipeline.admission import Ledger, Share, num_threads, visible_gpus
from orchestrator.pipeline.child import Order, RunningChild, last_error
from orchestrator.pipeline.children import Children, termination
from orchestrator.pipeline.orders import cluster_words
from orchestrator.pipeline.progress import Progress
from orchestrator.pipeline.records import LOG
from orchestrator.planning.choice import score_of
from orchestrator.sweep.metrics import final_metrics, metric_by_step
from orchestrator.sweep.suggestions import Suggestions
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.trial import (
    Outcome,
    Trial,
    one_driver,
    read_outcome,
    read_suggestion,
    write_outcome,
)

_METRICS_SECONDS = 5.0


class Scheduler(Protocol):
    """Decides which trials are stopped early."""

    def stops(self, trial: str, step: int, score: float) -> bool:
        """Take a trial's score at a step, less being better, and return whether the trial is to stop."""
        ...


class Driver:
    """Runs what is not done of a sweep, and knows what has become of each trial."""

    def __init__(
        self,
        sweep: Sweep,
        ledger: Ledger,
        start: Callable[[Order], RunningChild],
        show: Callable[[Mapping[str, Progress]], None],
        scheduler: Scheduler | None = None,
        address: str | None = None,
        max_lost_nodes: int = 0,
    ) -> None:
        """Take what it needs.

        Args:
            sweep: The trials.
            ledger: What there is to share out.
            start: Starts a child, on a thread that then waits for it.
            show: Shows how far the trials are.
            scheduler: Stops trials early; None lets all of them end.
            address: The Ray cluster that children join; None without one.
            max_lost_nodes: A trial is started anew after so many lost nodes.
        """
        self._sweep, self._ledger, self._show = sweep, ledger, show
        self._scheduler, self._address = scheduler, address
        self.outcomes: dict[int, Outcome] = {}
        self.progress = {name: Progress(path=f"runs/{sweep.name}/{name}") for name in sweep.names}
        self._ended: queue.Queue[tuple[Trial, int, str]] = queue.Queue()
        self._threads: dict[str, threading.Thread] = {}
        self._children = Children(start, self.progress, max_lost_nodes)
        self._lost = threading.Event()
        self._read_at = 0.0

    def run(self) -> None:
        """Run what is not done.

        Raises:
            TrialError: trials have failed; the message names each, with its error and its log.
        """
        with one_driver(self._sweep.storage, self._sweep.name, self._lose) as attempt:
            self._recall()
            try:
                while self._advance(attempt):
                    self._show(self.progress)
                    self._receive()
                    self._schedule()
                    if self._lost.is_set():
                        raise LeaseLostError(f"sweep.name={self._sweep.name}: another driver has taken it over")
            except BaseException as error:
                self._children.end(termination(error), self._wait_for_all)
                raise
            finally:
                self._show(self.progress)
        self._raise_failures()

    def _recall(self) -> None:
        """Read what is recorded; the scheduler learns it, and what it decided then stays as it is."""
        self._recall_suggestions()
        for trial in self._sweep.trials:
            if trial.number not in self._sweep.configs:
                continue
            found = self.outcomes[trial.number] = read_outcome(self._sweep.storage, self._sweep.name, trial)
            if found.state in ("done", "stopped"):
                one = self.progress[trial.name]
                one.phase, one.was_done = found.state, found.state == "done"
                one.why = _reached(trial, found)
            self._tell(trial, found.metric)

    def _recall_suggestions(self) -> None:
        sweep, suggestions = self._sweep, self._sweep.suggestions
        while suggestions and len(sweep.trials) < suggestions.num_trials:
            number = len(sweep.trials)
            suggested = read_suggestion(sweep.storage, sweep.name, number)
            if suggested is None:
                break
            self._add(suggestions, suggestions.trial(number, suggested))

    def _add(self, suggestions: Suggestions, trial: Trial) -> None:
        """Take a suggested trial in; values that do not go together have failed, and the search goes on."""
        self._sweep.trials.append(trial)
        outcome = self.outcomes[trial.number] = Outcome()
        try:
            self._sweep.configs[trial.number] = suggestions.compose(trial)
        except ConfigError as error:
            one = self.progress[trial.name]
            outcome.state, outcome.error = "failed", str(error)
            one.phase, one.why = "failed", outcome.error
            write_outcome(self._sweep.storage, self._sweep.name, trial, outcome)

    def _tell(self, trial: Trial, metric: Mapping[int, float]) -> bool:
        """Give the scheduler what a trial has reached; return whether it stops it."""
        if self._scheduler is None:
            return False
        scores = {step: score_of(self._sweep.metric, value) for step, value in sorted(metric.items())}
        answers = [self._scheduler.stops(trial.name, step, score) for step, score in scores.items()]
        return any(answers)

    def _advance(self, attempt: Attempt) -> bool:
        """Start what fits; return whether anything runs."""
        num_waiting = sum(one.phase == "waiting" for one in self.progress.values())
        side_by_side = num_waiting + len(self._threads)
        for trial in self._waiting():
            config = self._sweep.configs[trial.number]
            share = self._ledger.reserve(trial.name, config, is_alone=side_by_side == 1)
            if share is None:
                break  # who finds no room is the next to start
            threads = num_threads(share, config, self._ledger.total, side_by_side)
            self._begin(trial, share, threads, attempt)
        return bool(self._threads) or any(one.phase == "waiting" for one in self.progress.values())

    def _waiting(self) -> Iterator[Trial]:
        """Yield the trials that are to start; one is suggested when there is room for it, so that it knows most."""
        yield from [one for one in self._sweep.trials if self.progress[one.name].phase == "waiting"]
        sweep, suggestions = self._sweep, self._sweep.suggestions
        while suggestions and len(sweep.trials) < suggestions.num_trials and self._has_room_for(suggestions.typical):
            trial = suggestions.next(sweep.trials, self.outcomes, sweep.metric)
            self._add(suggestions, trial)
            if trial.number in sweep.configs:
                yield trial

    def _has_room_for(self, config: TrainingRunConfig) -> bool:
        has_room = self._ledger.reserve(self._sweep.name, config, is_alone=False) is not None
        self._ledger.release(self._sweep.name)
        return has_room

    def _begin(self, trial: Trial, share: Share, threads: int, attempt: Attempt) -> None:
        one, outcome = self.progress[trial.name], self.outcomes[trial.number]
        one.phase, one.began, one.why = "running", time.time(), _shown(trial)
        outcome.state, outcome.error = "begun", ""
        attempt.check(self._sweep.storage)
        write_outcome(self._sweep.storage, self._sweep.name, trial, outcome)
        order = self._order(trial, share, threads, attempt)
        thread = threading.Thread(target=self._attempt, args=(trial, order), name=trial.name, daemon=True)
        self._threads[trial.name] = thread
        thread.start()

    def _order(self, trial: Trial, share: Share, threads: int, attempt: Attempt) -> Order:
        """Return what the child of a trial is to do: the ordinary command, as a run of its own."""
        sweep, config = self._sweep, self._sweep.configs[trial.number]
        own = [f"storage.root={sweep.root}", f"run.name={sweep.name}/{trial.name}"]
        group = [] if config.tracking.group else [f"tracking.group={sweep.name}"]
        words = (sweep.command, *sweep.flags, *trial.words, *own, *group, *cluster_words(share, self._address))
        visible = visible_gpus(share, self._ledger.total, self._address)
        return Order(sweep.root, self.progress[trial.name].path, words, attempt, threads, visible, share.resources.gpus)

    def _attempt(self, trial: Trial, order: Order) -> None:
        """Run one child on a thread of its own; however it ends, the main thread is told."""
        try:
            self._ended.put((trial, self._child(trial, order), ""))
        except OrchestratorError as error:
            self._ended.put((trial, 1, str(error)))
        except BaseException as error:  # a thread must not end without a word
            self._ended.put((trial, 1, f"{type(error).__name__}: {error}"))

    def _child(self, trial: Trial, order: Order) -> int:
        """Run the child of a trial to its end, and return its exit code."""

        def before() -> None:
            # a process of an earlier driver may not have ended yet
            self._children.wait_for_run(self._sweep.storage, places.run_name(order.path), lambda _: None)

        return self._children.run(trial.name, order, before, lambda _: None)

    def _receive(self) -> None:
        """Wait a moment for the end of a child, and record what has become of its trial."""
        with suppress(queue.Empty):
            trial, code, error = self._ended.get(timeout=children.POLL_SECONDS)
            self._threads.pop(trial.name).join()
            self._ledger.release(trial.name)
            one = self.progress[trial.name]
            one.seconds, one.child, one.why = time.time() - (one.began or time.time()), None, ""
            if not self._lost.is_set():
                self._record_end(trial, code, error)

    def _record_end(self, trial: Trial, code: int, error: str) -> None:
        one, outcome, storage = self.progress[trial.name], self.outcomes[trial.number], self._sweep.storage
        if code == 0:
            self._take_final(trial, outcome)
        elif outcome.state == "stopped":
            one.phase, one.why = "stopped", "stopped early by sweep=asha"
            return
        elif self._children.stopping:
            one.phase, one.why = "stopped", "the same command goes on"
            return
        else:
            log = storage.url(f"{one.path}/{LOG}")
            outcome.state = "failed"
            outcome.error = f"{error or last_error(storage, one.path)} (exit code {code}; log: {log})"
        is_done = outcome.state == "done"
        one.phase, one.why = ("done", _reached(trial, outcome)) if is_done else ("failed", outcome.error)
        write_outcome(storage, self._sweep.name, trial, outcome)

    def _take_final(self, trial: Trial, outcome: Outcome) -> None:
        """Take the metric of a complete run."""
        run_name, metric = f"{self._sweep.name}/{trial.name}", self._sweep.metric
        found = final_metrics(self._sweep.storage, run_name)
        if metric not in found:
            outcome.state, outcome.error = "failed", f"its run has not measured {metric}"
            return
        outcome.state = "done"
        outcome.metric = metric_by_step(self._sweep.storage, run_name, metric)
        last = int(found.get("progress/step", 0)) or max(outcome.metric, default=0)
        outcome.metric[last] = float(found[metric])
        self._tell(trial, outcome.metric)  # others are compared with what it reached since it was last looked at

    def _schedule(self) -> None:
        """Give the scheduler what running trials have written since, and stop whom it stops."""
        if self._scheduler is None or time.monotonic() - self._read_at < _METRICS_SECONDS:
            return
        self._read_at = time.monotonic()
        for trial in self._sweep.trials:
            if trial.name in self._threads and self.outcomes[trial.number].state == "begun":
                with suppress(OrchestratorError):  # a store in trouble must not end the sweep
                    self._judge(trial)

    def _judge(self, trial: Trial) -> None:
        outcome, storage = self.outcomes[trial.number], self._sweep.storage
        found = metric_by_step(storage, f"{self._sweep.name}/{trial.name}", self._sweep.metric)
        new = {step: value for step, value in found.items() if step not in outcome.metric}
        outcome.metric |= new
        if self._tell(trial, new):
            outcome.state = "stopped"
        if new:  # a stop is recorded before it is carried out, so that a restart obeys it
            write_outcome(storage, self._sweep.name, trial, outcome)
        child = self.progress[trial.name].child
        if outcome.state == "stopped" and child is not None:
            child.notify(signal.SIGTERM)

    def _lose(self) -> None:
        self._lost.set()
        self._children.kill_all()

    def _wait_for_all(self) -> None:
        while self._threads:
            self._receive()
            self._show(self.progress)

    def _raise_failures(self) -> None:
        failed = {trial.name: self.outcomes[trial.number] for trial in self._sweep.trials}
        lines = [f"trial {name} failed: {one.error}" for name, one in failed.items() if one.state == "failed"]
        if lines:
            raise TrialError("\n".join([*lines, "the same command runs them again"]))


def _shown(trial: Trial) -> str:
    """Return the values of a trial, each under the last part of its setting's name, if no other setting ends so."""
    last = {name: name.rpartition(".")[2] for name in trial.swept}
    short = {name: part if list(last.values()).count(part) == 1 else name for name, part in last.items()}
    return " ".join(f"{short[name]}={value}" for name, value in trial.swept.items())


def _reached(trial: Trial, outcome: Outcome) -> str:
    return f"{outcome.value:.4g} with {_shown(trial)}" if outcome.value is not None else _shown(trial)
