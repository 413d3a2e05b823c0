"""What the orchestrator itself costs up to 10,000 workers and 1,000 stages: requests, bytes, seconds, and their growth.

The product's own functions run with small numbers of workers, stages or faults against a store in memory, and requests
are counted, a listing once for each 1,000 names, as object stores count it. A growth exponent of 1 is linear; it is
fitted to the two largest sizes, and carries the cost to the full size: that is extrapolated. No worker trains here, and
no stage computes: what grows is the bookkeeping.

Run: python tests/benchmarks/bench_scale.py
"""

import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from lived_runs import live
from simulated_ranks import RUN, WAYS, Model, RankState, restore, save
from store_requests import counted_store
from waiting import eventually

from orchestrator.checkpoints import checkpoint
from orchestrator.checkpoints.names import name_of
from orchestrator.checkpoints.progress import Progress
from orchestrator.checkpoints.retention import Retention, prune
from orchestrator.runs import lease as leases
from orchestrator.runs.event_files import EventFiles
from orchestrator.runs.event_writer import EventWriter
from orchestrator.runs.events import EventLog, events_folder
from orchestrator.runs.json_files import write_object
from orchestrator.runs.lease import lease
from orchestrator.runs.run import find_run
from orchestrator.runs.state import read_runs
from orchestrator.storage.store import Storage

Row = tuple[str, float, float, float]
"""What was measured, by how much it grows where its size doubles, by how much what is linear does, ours / linear."""
RANKS, ALL_RANKS = (8, 64, 256, 1024), 10_000
SHARE = 4096
"""Elements of a rank: as many whatever the number of ranks, so that what a rank asks for can be compared."""
FAULTS = (8, 32, 128)
STAGES, ALL_STAGES = (25, 50, 100), 1_000
RUNS, WRITTEN_RUNS = 1_000, 25
"""Run folders in a listing, and how many of them are written; the others are copies."""


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
    def doubled(self) -> float:
        """By how much it grows where its size doubles."""
        return 2**self.exponent

    @property
    def at_full_size(self) -> float:
        large = max(self.measured)
        return self.measured[large] * (self.full_size / large) ** self.exponent


@dataclass(frozen=True)
class Asked:
    """What is asked of the store by so many ranks, for the table of ranks."""

    way: str
    num_ranks: int
    saved: Sequence[Counter[str]]
    """By rank."""
    restored: dict[int, Counter[str]]
    """Of some ranks."""
    resized: dict[int, Counter[str]]
    """The same, when there are twice as many ranks."""
    manifest: int

    def largest(self, counts: Sequence[Counter[str]], what: str) -> int:
        return max(count[what] for count in counts)

    @property
    def figures(self) -> list[int]:
        """Requests and bytes of a rank that is not 0 at a save, a restore and a resized restore; rank 0's requests."""
        others = [self.saved[1:], *([*counts.values()][1:] for counts in (self.restored, self.resized))]
        kinds = ("bytes written", "bytes read", "bytes read")
        pairs = [(self.largest(c, "requests"), self.largest(c, kind)) for c, kind in zip(others, kinds, strict=True)]
        return [*sum(pairs, ()), self.saved[0]["requests"], self.restored[0]["requests"], self.manifest]


TITLES = (
    *("save: requests", "bytes", "restore: requests", "bytes", "twice the ranks: requests", "bytes"),
    *("rank 0 saves: requests", "restores: requests", "manifest: bytes"),
)


def asked_of_ranks() -> Iterator[Asked]:
    """Save with so many ranks, and restore as some of as many, and of twice as many."""
    for way in WAYS:
        for number in RANKS:
            storage, model = Storage(f"memory://scale/{way}/{number}"), Model(SHARE * number)
            saved = save(storage, model, way, number)
            restored, resized = (
                restore(storage, model, way, num, (1, num // 2, num - 1)) for num in (number, 2 * number)
            )
            manifest = len(storage.read_bytes(f"{name_of(RUN, 1)}/manifest.json"))
            yield Asked(way, number, saved, restored, resized, manifest)
            storage.remove("")


def table_of_ranks(found: Sequence[Asked]) -> Table:
    table = Table(title=f"Asked of the store by each of so many ranks with {SHARE:,} elements of each kind, the most")
    for title in ("", "ranks", *TITLES):
        table.add_column(title, justify="right" if title else "left")
    for one in found:
        table.add_row(one.way, f"{one.num_ranks:,}", *(f"{figure:,}" for figure in one.figures))
    return table


def of_ranks(found: Sequence[Asked]) -> Iterator[Cost]:
    """Costs of a checkpoint by number of ranks."""
    for way in WAYS:
        own = [one for one in found if one.way == way]
        for number, title in enumerate(TITLES[:-1]):
            unit = "bytes" if title.endswith("bytes") else "requests"
            what = f"{way}, {TITLES[number - 1].split(':')[0]}: bytes" if title == "bytes" else f"{way}, {title}"
            measured = {one.num_ranks: float(one.figures[number]) for one in own}
            yield Cost(what, unit, "checkpoints/", measured, ALL_RANKS)
        measured = {one.num_ranks: float(one.manifest) for one in own}
        yield Cost(f"{way}, manifest, read once", "bytes", "checkpoints/parts.py", measured, ALL_RANKS)


def of_long_runs() -> Iterator[Cost]:
    """Costs of a whole run by number of faults, which grows with the number of workers, and by checkpoints kept."""
    costs: dict[tuple[str, str], Callable[[Storage, int], int]] = {
        ("faults: events, goodput, interval=auto", "runs/event_writer.py"): requests_of_events,
        ("attempts: leases", "runs/lease.py: lease"): requests_of_leases,
        ("checkpoints that are all kept: pruning", "checkpoints/retention.py: prune"): requests_of_pruning,
        ("checkpoints that are all kept: restarts", "checkpoints/checkpoint.py: restore"): requests_of_restarts,
    }
    for (what, place), requests_of in costs.items():
        measured = {number: requests_of(Storage(f"memory://scale/{what}/{number}"), number) for number in FAULTS}
        yield Cost(f"{what}: requests of the run", "requests", place, measured, ALL_STAGES)


def requests_of_events(storage: Storage, num_faults: int) -> int:
    """All that rank 0 and the driver ask for: goodput, recoveries, `interval=auto`; ten saves between two faults."""
    driver = EventLog(storage, "runs/big", frozenset({"launch", "fault"}))
    with counted_store() as counts:
        for number in range(num_faults):
            driver.record({"kind": "launch"})
            with EventWriter(EventFiles(storage, events_folder("runs/big"))) as events:
                events.record({"kind": "begin", "step": number})
                assert eventually(lambda: events.so_far() is not None)
                for step in range(10):
                    events.record({"kind": "checkpoint", "step": step})
            driver.record({"kind": "fault", "text": ""})
    return counts["requests"]


def requests_of_leases(storage: Storage, num_attempts: int) -> int:
    with counted_store() as counts:
        for _ in range(num_attempts):
            with lease(storage, "big"):
                pass
    return counts["requests"]


def requests_of_pruning(storage: Storage, num_saves: int) -> int:
    with counted_store() as counts:
        for step in range(1, num_saves + 1):
            storage.write_bytes(f"{name_of('big', step)}/COMMITTED", b"")
            prune(storage, "big", Retention(keep_every_steps=1))
    return counts["requests"]


def requests_of_restarts(storage: Storage, num_restarts: int) -> int:
    """Each restart looks for the newest checkpoint, and there is one more each time."""
    with counted_store() as counts:
        for step in range(1, num_restarts + 1):
            storage.write_bytes(f"{name_of('big', step)}/COMMITTED", b"")
            with patch.object(checkpoint, "_load", lambda *_: (Progress(1, 0), None)):
                assert checkpoint.restore(storage, "big", RankState(Model(SHARE), (), 0), {}, print) is not None
            checkpoint.discard_after(storage, "big", step)
    return counts["requests"] - num_restarts


def of_listing() -> Iterator[Cost]:
    """Costs of `orchestrator runs` on a local disk, by number of runs."""
    files, seconds = {}, {}
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        with patch.object(os, "fsync", lambda _: None):
            for number in range(WRITTEN_RUNS):
                live(Storage(folder), f"run_{number:04d}", num_attempts=1 + number % 5, is_done=number % 10 != 9)
        for size in (WRITTEN_RUNS, RUNS // 4, RUNS):
            for number in range(WRITTEN_RUNS, size):
                place = Path(folder, "runs", f"run_{number:04d}")
                if not place.exists():
                    shutil.copytree(place.with_name(f"run_{number % WRITTEN_RUNS:04d}"), place)
            began = time.process_time()
            with counted_store() as counts:
                assert len(read_runs(Storage(folder))) == size
            files[size], seconds[size] = float(counts["requests"]), time.process_time() - began
    place = "runs/state.py: read_runs"
    yield Cost("orchestrator runs, local disk: files and folders", "requests", place, files, RUNS)
    yield Cost("orchestrator runs, local disk: computing", "seconds", place, seconds, RUNS)


def of_stages() -> Iterator[Cost]:
    """Costs of runs below one root, as a pipeline's stages make them."""
    beginning, listing, seconds, held = {}, {}, {}, {}
    for number in STAGES:
        storage = Storage(f"memory://scale/stages/{number}")
        with counted_store() as counts:
            for stage in range(number):
                begin_stage(storage, f"stage_{stage}")
        beginning[number] = counts["requests"]
        began = time.process_time()
        with counted_store() as counts:
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
    with counted_store() as counts:
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
    """Print the tables; return how costs grow where their size doubles."""
    asked = [*asked_of_ranks()]
    costs = [*of_ranks(asked), *of_long_runs(), *of_listing(), *of_stages()]
    console = Console(width=180, stderr=True)
    console.print(table_of_ranks(asked))
    console.print(table_of(costs))
    return [
        (f"{cost.what}, of twice the size beside linear (times)", cost.doubled, 2.0, cost.doubled / 2) for cost in costs
    ]


if __name__ == "__main__":
    main()
    sys.exit(0)
