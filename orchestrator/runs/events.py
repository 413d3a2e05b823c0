"""What happened to a run, one small file an event below its folder; goodput is reckoned from nothing else.

A kind, a time (seconds since 1970) and further fields each. The driver records
    launch: workers are about to be started; host, pid
    fault: an attempt ended before its time; text, preempted (whether a node was taken away, which is no failure)
    restart: the next attempt after a fault; number, text
    resize: the run goes on with another number of workers; from, to, text
and rank 0 of the workers
    begin: training begins; step, world_size, strategy
    skip: a bad step left weights and moments as they were; step (counted from 0, as data and schedule do), reason,
        grad_norm (null if not finite), samples (the first and the last that it held)
    rollback: too many bad steps in a row; step (that the run goes back to), from_step, data_steps (that are passed
        over from there on) and samples (the first and the last of them), text; `begin` follows
    checkpoint: is committed; step, loss (`train/loss` of that step), seconds (that training waited), flush_seconds
        (from the step to the commit), training_seconds (spent in steps from `begin` to that step)
    save_failed: a checkpoint could not be written; step, text, seconds (that training waited)
    stop: ended early by a notice of termination, after a last checkpoint; step, signal
    end: the last step is done; step, training_seconds
and the rank that a fault was ordered for
    fault_injected: the fault is about to fire; fault (its kind), at_step, rank (all as ordered), step (finished ones)
"""

import json
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from orchestrator.distributed.runtime import Event
from orchestrator.errors import StorageError
from orchestrator.storage.store import Storage

log = logging.getLogger(__name__)
DRIVER_KINDS = frozenset({"launch", "fault", "restart", "resize"})
WORKER_KINDS = frozenset({"begin", "skip", "rollback", "checkpoint", "save_failed", "stop", "end"})
INJECTED = "fault_injected"
_NUM_READERS = 8


class EventLog:
    """The events of one run. Trouble in writing one is logged and stops nothing.

    Args:
        kinds: What this process writes; other events are for the display, or another process has written them.
    """

    def __init__(self, storage: Storage, run_folder: str, kinds: frozenset[str] = WORKER_KINDS) -> None:
        self._storage, self._folder, self._kinds = storage, f"{run_folder}/events", kinds

    def record(self, event: Event) -> bool:
        """Write an event of our kinds; return whether it is kept."""
        if event["kind"] not in self._kinds:
            return False
        now = time.time()
        name = f"{int(now * 1e6):017d}-{event['kind']}-{secrets.token_hex(2)}.json"
        try:
            self._storage.write_bytes(f"{self._folder}/{name}", json.dumps({"time": now, **event}).encode())
        except StorageError as error:
            log.warning("an event was not kept: %s", error)
            return False
        return True

    def and_then(self, emit: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return what records an event and passes it on."""

        def both(event: Event) -> None:
            self.record(event)
            emit(event)

        return both

    def read(self, *kinds: str) -> list[Event]:
        """Return the events in the order of their times, all or those of some kinds; of others no file is read."""
        files = [name for name in self._storage.list(self._folder) if name.endswith(".json")]
        files = [name for name in files if not kinds or name.split("-")[1] in kinds]
        # a long run has thousands, and each costs a round trip in a remote store
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            return [*pool.map(lambda name: json.loads(self._storage.read_bytes(f"{self._folder}/{name}")), files)]
