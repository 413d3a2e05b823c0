"""What the orchestrator itself costs up to 10,000 workers and 1,000 stages: requests, bytes, seconds, and their growth.

The product's own functions run with small numbers of workers, stages or faults against a store in memory, and requests
are counted, a listing once for each 1,000 names, as object stores count it. A growth exponent of 1 is linear; it is
fitted to the two largest sizes, and carries the cost to the full size: that is extrapolated. No worker trains here, and
no stage computes: what grows is the bookkeeping.

Run: python tests/benchmarks/bench_scale.py
"""

import gc
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from orchestrator.checkpoints import checkpoint
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.checkpoints.names import name_of
from orchestrator.checkpoints.parts import Index, Part, are_all_stored, commit_parts, file_of, store_part
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.retention import Retention, prune
from orchestrator.runs import lease as leases
from orchestrator.runs.events import EventLog
from orchestrator.runs.goodput import last_recovery, wall_seconds
from orchestrator.runs.json_files import write_object
from orchestrator.runs.lease import lease
from orchestrator.runs.run import find_run
from orchestrator.runs.state import read_runs
from orchestrator.storage.store import Storage

Row = tuple[str, float, float, float]
"""What was measured, our growth exponent, the linear one, ours / linear."""
NUM_PARAMETERS, PARAMETER_ELEMENTS = 148, 10**6
"""As many as GPT-2 124M has; 12 layers."""
KINDS = ("weight", "exp_avg", "exp_avg_sq")
WORKERS, ALL_WORKERS = (64, 256, 1024), 10_000
FAULTS = (8, 32, 128)
STAGES, ALL_STAGES = (25, 50, 100), 1_000
PAGE_NAMES = 1000
"""Names in one answer to a listing."""
REQUESTS = ("exists", "list", "read_bytes", "write_bytes", "create_bytes", "remove", "num_bytes", "modified_seconds")


@dataclass(frozen=True)
class Cost:
    """One cost, by the size that it grows with."""

    what: str
    unit: str
    place: str
    """Where in the code it arises."""
    measured: dict[int, float]
    full_size: int

    @property
    def exponent(self) -> float:
        (small, before), (large, after) = list(self.measured.items())[-2:]
        return math.log(after / before) / math.log(large / small)

    @property
    def at_full_size(self) -> float:
        large = max(self.measured)
        return self.measured[large] * (self.full_size / large) ** self.exponent


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the requests of every store, and the bytes that are read and written."""
    counts: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(Storage, name)

        def request(self: Storage, *arguments: Any, **settings: Any) -> Any:
            counts["requests"] += 1
            answer = original(self, *arguments, **settings)
            counts["requests"] += max(0, math.ceil(len(answer) / PAGE_NAMES) - 1) if name == "list" else 0
            counts["bytes read"] += len(answer) if name == "read_bytes" else 0
            counts["bytes written"] += len(arguments[1]) if name in ("write_bytes", "create_bytes") else 0
            return answer

        return request

    patches = [patch.object(Storage, name, counting(name)) for name in REQUESTS]
    for one in patches:
        one.start()
    try:
        yield counts
    finally:
        for one in patches:
            one.stop()


def index_of(rank: int, num_workers: int, is_flat: bool) -> Index:
    """Return a rank's ranges: a stretch of all parameters one after the other (DDP, ZeRO-1, 2), or a share of each."""
    index: Index = {}
    share = NUM_PARAMETERS * PARAMETER_ELEMENTS // num_workers
    for number in range(NUM_PARAMETERS):
        first = number * PARAMETER_ELEMENTS
        if is_flat:
            start, stop = max(first, rank * share), min(first + PARAMETER_ELEMENTS, (rank + 1) * share)
        else:
            start, stop = (first + PARAMETER_ELEMENTS * part // num_workers for part in (rank, rank + 1))
        if start < stop:
            where = (start - first, stop - first, file_of(rank, "save-1"), 4 * (start - first))
            index[f"blocks.{number // 12}.layer_{number % 12}.weight"] = {kind: [where] for kind in KINDS}
    return index


def saved(storage: Storage, num_workers: int, is_flat: bool, step: int = 1) -> tuple[Counter[str], float]:
    """Save with so many workers; return what the store was asked for, and the seconds of rank 0's commit."""
    with counted() as counts:
        for rank in range(num_workers):
            part = Part(name_of("big", step), "save-1", rank, num_workers, index_of(rank, num_workers, is_flat))
            store_part(storage, part, [memoryview(b"")])
        gc.collect()
        gc.freeze()  # the process that commits has no torch, whose objects a collection would look at
        began = time.process_time()  # another program on this machine must not count
        assert are_all_stored(storage, part)
        # the store in memory looks at all files for each that it removes
        with patch.object(Storage, "remove", lambda *_: None):
            commit_parts(storage, part, Progress(step, 0).to_json(), {}, Attempt("big", 0, ""))
        return counts, time.process_time() - began


def of_saves() -> Iterator[Cost]:
    """Costs of a checkpoint by number of workers."""
    for is_flat, layout in ((True, "a stretch of all"), (False, "a share of each (zero3)")):
        requests, manifest, seconds, restored = {}, {}, {}, {}
        for number in WORKERS:
            storage = Storage(f"memory://scale/{is_flat}/{number}")
            counts, seconds[number] = saved(storage, number, is_flat)
            requests[number] = counts["requests"]
            manifest[number] = len(storage.read_bytes(f"{name_of('big', 1)}/manifest.json"))
            restored[number] = bytes_of_restore(storage, number)
        where = "checkpoints/parts.py"
        yield Cost(f"save, {layout}: requests of all workers", "requests", where, requests, ALL_WORKERS)
        yield Cost(f"save, {layout}: manifest", "bytes", f"{where}: MergedRanges", manifest, ALL_WORKERS)
        yield Cost(f"save, {layout}: computing of rank 0", "seconds", f"{where}: commit_parts", seconds, ALL_WORKERS)
        where = "checkpoints/checkpoint.py: restore"
        yield Cost(f"restore, {layout}: manifests read by all", "bytes", where, restored, ALL_WORKERS)


def bytes_of_restore(storage: Storage, num_workers: int) -> int:
    """Return the bytes of manifest and state that all workers read from the store until each knows the checkpoint."""
    answers: list[Any] = []

    def as_rank_0(action: Callable[[], Any]) -> Any:
        answers.append(action())
        return answers[-1]

    def as_another(_: Callable[[], Any]) -> Any:
        return answers.pop(0)

    def read_as(from_rank_0: Callable[[Callable[[], Any]], Any]) -> int:
        state = type("State", (), {"load": lambda *_: None})()
        with counted() as counts, patch.object(checkpoint, "from_rank_0", from_rank_0):
            assert checkpoint.restore(storage, "big", state, {}, print) is not None
        return counts["bytes read"]

    return read_as(as_rank_0) + (num_workers - 1) * read_as(as_another)


def of_long_runs() -> Iterator[Cost]:
    """Costs of a whole run by number of faults, which grows with the number of workers, and by checkpoints kept."""
    costs: dict[tuple[str, str], Callable[[Storage, int], int]] = {
        ("faults: events of each recovery", "runs/results.py: _recovery"): requests_of_recoveries,
        ("faults: mean time between them (interval=auto)", "training/save_schedule.py"): requests_of_intervals,
        ("attempts: leases", "runs/lease.py: lease"): requests_of_leases,
        ("checkpoints that are all kept: pruning", "checkpoints/retention.py: prune"): requests_of_pruning,
        ("checkpoints that are all kept: restarts", "checkpoints/checkpoint.py: restore"): requests_of_restarts,
    }
    for (what, place), requests_of in costs.items():
        measured = {number: requests_of(Storage(f"memory://scale/{what}/{number}"), number) for number in FAULTS}
        yield Cost(f"{what}: requests of the run", "requests", place, measured, ALL_STAGES)


def requests_of_recoveries(storage: Storage, num_faults: int) -> int:
    events = EventLog(storage, "runs/big", frozenset({"fault", "begin"}))
    with counted() as counts:
        for _ in range(num_faults):
            events.record({"kind": "fault", "text": ""})
            events.record({"kind": "begin", "step": 0})
            last_recovery(events.read("fault", "begin", last=("begin", 2)))
    return counts["requests"]


def requests_of_intervals(storage: Storage, num_faults: int) -> int:
    """Each attempt asks once how far apart the faults were; between two faults there are ten saves."""
    events = EventLog(storage, "runs/big", frozenset({"launch", "fault", "begin", "checkpoint"}))
    with counted() as counts:
        for _ in range(num_faults):
            for kind in ("launch", "begin", *["checkpoint"] * 10, "fault"):
                storage.write_bytes(f"runs/big/events/{time.time_ns() // 1000:017d}-{kind}-00.json", b"{}")
            assert wall_seconds(events.outline()) > 0
    return counts["requests"] - 13 * num_faults


def requests_of_leases(storage: Storage, num_attempts: int) -> int:
    with counted() as counts:
        for _ in range(num_attempts):
            with lease(storage, "big"):
                pass
    return counts["requests"]


def requests_of_pruning(storage: Storage, num_saves: int) -> int:
    with counted() as counts:
        for step in range(1, num_saves + 1):
            storage.write_bytes(f"{name_of('big', step)}/COMMITTED", b"")
            prune(storage, "big", Retention(keep_every_steps=1))
    return counts["requests"]


def requests_of_restarts(storage: Storage, num_restarts: int) -> int:
    """Each restart looks for the newest checkpoint, and there is one more each time."""
    with counted() as counts:
        for step in range(1, num_restarts + 1):
            storage.write_bytes(f"{name_of('big', step)}/COMMITTED", b"")
            with patch.object(checkpoint, "_load", lambda *_: (Progress(1, 0), None)):
                assert checkpoint.restore(storage, "big", None, {}, print) is not None  # type: ignore[arg-type]
            checkpoint.discard_after(storage, "big", step)
    return counts["requests"] - num_restarts


def of_stages() -> Iterator[Cost]:
    """Costs of runs below one root, as a pipeline's stages make them."""
    beginning, listing, seconds, held = {}, {}, {}, {}
    for number in STAGES:
        storage = Storage(f"memory://scale/stages/{number}")
        with counted() as counts:
            for stage in range(number):
                begin_stage(storage, f"stage_{stage}")
        beginning[number] = counts["requests"]
        began = time.process_time()
        with counted() as counts:
            assert len(read_runs(storage)) == number
        listing[number], seconds[number] = counts["requests"], time.process_time() - began
        held[number] = sum(requests_of_a_minute(storage, f"stage_{stage}") for stage in range(number))
    place = "runs/lease.py"
    yield Cost("stages at once: a minute of their leases", "requests", place, held, ALL_STAGES)
    yield Cost("stages: lease, recipe, events", "requests", "cluster/training_run.py", beginning, ALL_STAGES)
    yield Cost("orchestrator runs: requests", "requests", "runs/state.py: read_runs", listing, ALL_STAGES)
    yield Cost("orchestrator runs: computing", "seconds", "runs/state.py: read_runs", seconds, ALL_STAGES)


def begin_stage(storage: Storage, name: str) -> None:
    assert find_run(storage, name) is None
    with lease(storage, name):
        write_object(storage, f"runs/{name}/recipe.json", {"training": {"num_steps": 1}})
        EventLog(storage, f"runs/{name}", frozenset({"launch"})).record({"kind": "launch"})


def requests_of_a_minute(storage: Storage, name: str) -> int:
    """Return what the leases of a training stage ask for in a minute: the stage's and the run's, driver and worker."""
    with counted() as counts:
        for above in ("stages", "runs"):
            attempt = leases._take(storage, name, above)
            begun = counts["requests"]
            for _ in range(round(60 / leases.RENEWAL_SECONDS)):
                leases._renew(storage, attempt, time.time())
                attempt.check(storage)
            counts["of leases"] += counts["requests"] - begun
    return counts["of leases"]


def table_of(costs: Sequence[Cost]) -> Table:
    table = Table(title="Costs of the bookkeeping, extrapolated by the growth between the two largest sizes")
    for name in ("what", "measured at", "there", "at full size", "unit", "exponent", "where"):
        table.add_column(name, justify="left" if name in ("what", "unit", "where") else "right")
    for cost in costs:
        large = max(cost.measured)
        there, full = f"{cost.measured[large]:,.4g}", f"{cost.full_size:,}: {cost.at_full_size:,.3g}"
        table.add_row(cost.what, f"{large:,}", there, full, cost.unit, f"{cost.exponent:.2f}", cost.place)
    return table


def main() -> list[Row]:
    """Print the table; return the growth exponents."""
    costs = [*of_saves(), *of_long_runs(), *of_stages()]
    Console(width=180, stderr=True).print(table_of(costs))
    return [(f"growth of {cost.what} (exponent)", cost.exponent, 1.0, cost.exponent) for cost in costs]


if __name__ == "__main__":
    main()
    sys.exit(0)
