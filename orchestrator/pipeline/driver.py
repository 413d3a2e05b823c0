"""Runs the stages that are not done: side by side as far as resources go, each a child process under a lease."""

import graphlib
import heapq
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.checkpoints.attempt import STAGES, Attempt
from orchestrator.configuration.commands import PrepareConfig
from orchestrator.configuration.composer import Composer
from orchestrator.errors import LeaseError, LeaseLostError, LostNodeError, OrchestratorError, StageError
from orchestrator.pipeline import children, places, records
from orchestrator.pipeline.admission import Ledger, Share, num_threads, visible_gpus
from orchestrator.pipeline.child import Order, RunningChild, last_error
from orchestrator.pipeline.children import Children, termination
from orchestrator.pipeline.orders import order_of
from orchestrator.pipeline.plan import Judgement, Planner, held_by
from orchestrator.pipeline.progress import Progress
from orchestrator.runs import lease
from orchestrator.runs.input_identity import prepared_name
from orchestrator.runs.stages import write_current


@dataclass(frozen=True)
class _Ended:
    """What has become of an attempt."""

    name: str
    kind: Literal["done", "failed", "stopped", "held"]
    text: str = ""
    judged: Judgement | None = None


class Driver:
    """Runs the stages of a pipeline, and knows how far each is."""

    def __init__(
        self,
        planner: Planner,
        root: str,
        composer: Composer,
        ledger: Ledger,
        start: Callable[[Order], RunningChild],
        show: Callable[[Mapping[str, Progress]], None],
        address: str | None = None,
        max_lost_nodes: int = 0,
    ) -> None:
        """Take what it needs.

        Args:
            planner: Knows the stages, and which of them are done.
            root: The storage root, as children are told it.
            composer: Knows the flags of a child's command line.
            ledger: What there is to share out.
            start: Starts a child, on a thread that then waits for it.
            show: Shows how far the stages are.
            address: The Ray cluster that children join if they train; None without one.
            max_lost_nodes: A stage is started anew after so many lost nodes.
        """
        self._planner, self._root, self._composer, self._ledger = planner, root, composer, ledger
        self._show, self._address = show, address
        self.progress = {name: Progress() for name in planner.stages}
        self._children = Children(start, self.progress, max_lost_nodes)
        self._numbers = {name: number for number, name in enumerate(planner.stages)}
        self._graph = graphlib.TopologicalSorter({name: stage.needs for name, stage in planner.stages.items()})
        self._ready: list[tuple[int, str]] = []
        """A heap, by their place in the pipeline, of the stages that wait for no other stage."""
        self._has_failed, self._next_show = False, 0.0
        self._judged: dict[str, Judgement] = {}
        self._forced: set[str] = set()
        self._ended: queue.Queue[_Ended] = queue.Queue()
        self._threads: dict[str, threading.Thread] = {}

    def run(self, forced: Collection[str], keep_going: bool) -> None:
        """Run what is not done.

        Raises:
            StageError: stages have failed; the message names each, with its error and its log.
        """
        self._forced = set(forced)
        wanted = {name: recipe.fingerprint for name, recipe in self._planner.recipes.items()}
        write_current(self._planner.storage, self._planner.pipeline, wanted)
        self._graph.prepare()
        try:
            while self._advance(keep_going):
                self._show_sometimes()
                self._receive()
        except BaseException as error:
            self._children.end(termination(error), self._wait_for_all)
            raise
        finally:
            self._next_show = 0.0
            self._show_sometimes()
        self._raise_failures()

    def _show_sometimes(self) -> None:
        """Show how far the stages are, unless that was a moment ago: of a thousand stages many end in a moment."""
        if time.monotonic() < self._next_show:
            return
        for name in self.progress:
            self._is_blocked(name)
        self._show(self.progress)
        self._next_show = time.monotonic() + children.POLL_SECONDS

    def _is_blocked(self, name: str) -> bool:
        """Return whether a stage waits for others, or is skipped since one that it needs is lost."""
        one = self.progress[name]
        if one.phase == "waiting":
            needs = {of: self.progress[of].phase for of in self._planner.stages[name].needs}
            if not {"failed", "skipped", "stopped"}.isdisjoint(needs.values()):
                one.phase, one.why = "skipped", "a stage that it needs has failed"
            elif not_done := [of for of, phase in needs.items() if phase != "done"]:
                one.why = f"needs {', '.join(not_done)}"
                return True
        return one.phase == "skipped"

    def _advance(self, keep_going: bool) -> bool:
        """Start what can start; return whether anything runs, or waits for what another driver holds."""
        while self._find_ready():
            name = self._ready[0][1]
            one = self.progress[name]
            if not self._is_blocked(name):
                if self._has_failed and not keep_going:
                    one.phase, one.why = "skipped", "not started after a failure; keep_going=true goes on"
                elif not self._begin(name, one):
                    break  # who finds no room is the next to start: smaller ones must not keep it waiting for ever
            heapq.heappop(self._ready)
            if one.phase == "skipped":
                self._graph.done(name)
        return bool(self._threads or self._ready)

    def _find_ready(self, *again: str) -> list[tuple[int, str]]:
        for name in (*self._graph.get_ready(), *again):
            heapq.heappush(self._ready, (self._numbers[name], name))
        return self._ready

    def _begin(self, name: str, one: Progress) -> bool:
        """Start a stage, or find it done; return False if there is no room for it."""
        config, side_by_side = self._planner.stages[name].config, len(self._ready) + len(self._threads)
        judged = self._planner.judge(name, self._judged, name in self._forced)
        if judged.state == "done":
            one.was_done = one.began is None
            self._is_done(name, judged)
            return True
        share = self._ledger.reserve(name, config, is_alone=side_by_side == 1)
        if share is None:
            one.why = f"waits for CPUs or GPUs that other {'stages' if self._threads else 'processes'} hold"
            return False
        one.phase, one.why, one.path, one.began = "running", "; ".join(judged.reasons), judged.path, time.time()
        threads = num_threads(share, config, self._ledger.total, side_by_side)
        thread = threading.Thread(target=self._attempt, args=(name, share, threads), name=name, daemon=True)
        self._threads[name] = thread
        thread.start()
        return True

    def _receive(self) -> None:
        """Wait a moment for the end of an attempt, and take note of it."""
        with suppress(queue.Empty):
            ended = self._ended.get(timeout=children.POLL_SECONDS)
            self._threads.pop(ended.name).join()
            self._ledger.release(ended.name)
            one = self.progress[ended.name]
            one.seconds, one.why, one.child = time.time() - (one.began or time.time()), ended.text, None
            if ended.kind == "done" and ended.judged:
                self._is_done(ended.name, ended.judged)
            elif ended.kind == "held":
                one.phase = "waiting"
                self._find_ready(ended.name)
            else:
                one.phase, self._has_failed = ended.kind, True
                self._graph.done(ended.name)

    def _is_done(self, name: str, judged: Judgement) -> None:
        one = self.progress[name]
        self._judged[name] = judged
        self._forced.discard(name)
        one.phase, one.why, one.path, one.seconds = "done", "", judged.path, judged.seconds or one.seconds
        self._graph.done(name)

    def _attempt(self, name: str, share: Share, threads: int) -> None:
        """Run one stage on a thread of its own; however it ends, the main thread is told."""
        try:
            ended = self._led(name, share, threads)
        except OrchestratorError as error:
            ended = _Ended(name, "failed", str(error))
        except BaseException as error:  # a thread must not end without a word
            ended = _Ended(name, "failed", f"{type(error).__name__}: {error}")
        self._ended.put(ended)

    def _led(self, name: str, share: Share, threads: int) -> _Ended:
        key, lost = self._planner.recipes[name].fingerprint, threading.Event()

        def lose() -> None:
            lost.set()
            self._children.kill(name)

        try:
            with lease.lease(self._planner.storage, key, on_loss=lose, above=STAGES) as attempt:
                return self._run(name, share, threads, attempt, lost)
        except LeaseLostError:
            return _Ended(name, "held", "another driver has taken it over")
        except LeaseError:
            return self._waited(name)

    def _waited(self, name: str) -> _Ended:
        """Wait until no other driver runs the stage; its share of the machine is free meanwhile."""
        self._ledger.release(name)
        self.progress[name].phase = "waiting"
        while (holder := self._planner.holder(name)) and not self._children.stopping:
            self.progress[name].why = f"waits for {held_by(holder)}, which runs it"
            time.sleep(children.POLL_SECONDS)
        return _Ended(name, "held")

    def _run(self, name: str, share: Share, threads: int, attempt: Attempt, lost: threading.Event) -> _Ended:
        """Run the command of a stage whose lease is held, and record its result."""
        # another driver may have finished it since it was judged
        found = self._planner.judge(name, self._judged, name in self._forced)
        if found.state == "done":
            return _Ended(name, "done", judged=found)
        stage, storage, began = self._planner.stages[name], self._planner.storage, time.time()
        recipe, digests = self._planner.recipes[name], self._planner.input_digests(name, self._judged)
        attempt.check(storage)
        records.write_begun(storage, recipe.fingerprint, stage, found.path, recipe.content, digests)
        records.clear(storage, stage.command, found.path)
        about = []
        if stage.command == "report":
            graph = records.write_graph(storage, found.path, self._pictured())
            about = [f"title={places.quoted(self._planner.pipeline)}", f"graph={graph}"]
        typed = [*self._composer.flags, *about, *stage.overrides]
        words = order_of(stage, typed, self._planner, self._root, found.path, self._judged, share, self._address)
        visible = visible_gpus(share, self._ledger.total, self._address)
        order = Order(self._root, found.path, words, attempt, threads, visible, share.resources.gpus)
        code = self._child(name, order)
        if lost.is_set():
            return _Ended(name, "held", "another driver has taken it over")
        attempt.check(storage)  # the child may have noticed before this process does
        if code:
            return self._failure(name, found.path, code)
        chosen = prepared_name(storage, stage.config, words) if isinstance(stage.config, PrepareConfig) else None
        result = records.found_result(storage, stage.command, found.path, chosen)
        record = {"path": found.path, "command": stage.command, "recipe": recipe.content, "result": result}
        about = {"inputs": digests, "seconds": round(time.time() - began, 3)}
        records.write_done(storage, recipe.fingerprint, attempt, {**record, **about})
        return _Ended(name, "done", judged=Judgement.done({**record, **about}))

    def _child(self, name: str, order: Order) -> int:
        """Run the child of a stage to its end, and return its exit code."""
        one = self.progress[name]
        why = one.why

        def waiting(held: Mapping[str, Any]) -> None:
            one.why = f"waits for {held_by(held)} of an earlier attempt to end"

        def before() -> None:
            if self._planner.stages[name].command in places.TRAINS:
                self._children.wait_for_run(self._planner.storage, places.run_name(order.path), waiting)
                one.why = why

        def on_lost(error: LostNodeError) -> None:
            nonlocal why
            one.why = why = f"{error}; started anew"

        return self._children.run(name, order, before, on_lost)

    def _failure(self, name: str, path: str, code: int) -> _Ended:
        if self._children.stopping:
            return _Ended(name, "stopped", "the same command goes on")
        storage = self._planner.storage
        text = f"{last_error(storage, path)}\n    (exit code {code}; log: {storage.url(f'{path}/{records.LOG}')})"
        return _Ended(name, "failed", text)

    def _pictured(self) -> dict[str, dict[str, Any]]:
        """Return the stages with their times, in the form that `report` reads."""
        return {
            name: {
                "command": stage.command,
                "inputs": list(stage.needs),
                "state": self.progress[name].phase,
                "seconds": self.progress[name].seconds if self.progress[name].phase == "done" else None,
            }
            for name, stage in self._planner.stages.items()
        }

    def _wait_for_all(self) -> None:
        while self._threads:
            self._receive()
            self._show_sometimes()

    def _raise_failures(self) -> None:
        failed = {name: one for name, one in self.progress.items() if one.phase == "failed"}
        if failed:
            lines = [f"stage {name} failed: {one.why}" for name, one in failed.items()]
            raise StageError("\n".join(lines))
