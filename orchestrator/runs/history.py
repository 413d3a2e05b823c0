"""The metrics of every logged step and validation of a run, kept while it runs; readers never parse logs.

    runs/NAME/history/000005-0000000004-000012.jsonl         a part: attempt 5 at writing, of lease 4, its 12th part
    runs/NAME/history/000005-0000000004-000012.full.jsonl    the same, with 1,000 lines and more: never changed again

Each line is one of
    {"order": [5, 4, 37], "kind": "begin", "step": 120, "time": …}    training begins after step 120
    {"order": …, "kind": "step" or "validation", "step": …, "time": …, "metrics": {…}, "samples": [texts]}
        and "samples_note" if they are shorter than usual
    {"order": …, "kind": "restored", "step": 120, "time": …, "metrics": {…}}    as in the checkpoint of that step
`order` is attempt, lease and number within the attempt; lines are read in that order, whatever part they are in, and a
`begin` supersedes the later steps of the attempts before it. What was `restored` counts only if a process was killed
between a save and the report of its step. A value that is not finite is null.

Only rank 0 writes, in the background: the newest part is written again until it has 32 lines, and 32 parts, or parts
with 1,000 lines together, are merged into one. So each write is one request, and a line is written a bounded number of
times.
"""

import json
import logging
import math
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from orchestrator.distributed.runtime import Event
from orchestrator.errors import StorageError
from orchestrator.runs.recorder import BackgroundRecorder
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 15.0
_KEPT = ("begin", "restored", "step", "validation")
_PART = re.compile(r"(\d+)-(\d+)-(\d+)(\.full)?\.jsonl")
_FULL_LINES = 1000
_PART_LINES = 32
_MOST_PARTS = 32
_NUM_READERS = 8
_NUM_LISTINGS = 5

Line = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """What was measured after a step."""

    step: int
    time: float
    """In seconds since 1970."""
    metrics: Mapping[str, float]
    """Of the step and, where there was one, of the validation after it; nan where a value was not finite."""
    samples: tuple[str, ...] = ()
    """Texts that the model generated after the validation."""


class History(BackgroundRecorder):
    """Keeps the events `begin`, `restored`, `step` and `validation` of one attempt; a failure to write stops no run.

    It writes every 15 s, and at once at a validation, a save, a stop and the end.

    Args:
        lease_number: Of the attempt's lease.
        interval_seconds: The longest time that what happened is in memory alone, while the store can be written.
    """

    def __init__(
        self, storage: Storage, run_folder: str, lease_number: int = 0, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        super().__init__("history")
        self._parts = _Parts(storage, f"{run_folder}/history", lease_number)
        self._interval_seconds = interval_seconds
        self._pending: list[Line] = []
        self._writing = threading.Lock()
        self._is_due = False

    def record(self, event: Event) -> None:
        """Keep an event; return at once, unless it is the last one of this attempt."""
        kind = event["kind"]
        if kind in _KEPT:
            self._pending.append({**event, "time": time.time()})
        if kind in ("validation", "save"):
            # what led to a checkpoint must be there when another process continues from it
            with self._changed:
                self._is_due = True
                self._changed.notify()
        elif kind in ("stop", "end"):
            self._write()

    def _write_until_closed(self) -> None:
        while not self._is_closed:
            with self._changed:
                self._changed.wait_for(lambda: self._is_due or self._is_closed, self._interval_seconds)
                self._is_due = False
            self._write()

    def _write(self) -> None:
        with self._writing:
            lines = self._pending[:]
            try:
                if lines:
                    self._parts.write(lines)
            except StorageError as error:
                log.warning("the history of the run was not written, and will be tried again: %s", error)
            else:
                del self._pending[: len(lines)]


@dataclass
class _Part:
    """A part that may be merged with others."""

    name: str
    lines: list[bytes] | None = None
    """None if it is of an earlier attempt and was not read yet."""


@dataclass
class _Parts:
    """The parts in a run's folder, as their writer sees them."""

    storage: Storage
    folder: str
    lease_number: int
    _attempt: int | None = None
    _closed: list[_Part] = field(default_factory=list)
    """Parts that are not full, without the newest one."""
    _newest: _Part = field(default_factory=lambda: _Part("", []))
    _num_parts: int = 0
    _num_lines: int = 0

    def write(self, lines: Sequence[Line]) -> None:
        """Write lines, which are kept when this raises nothing."""
        if self._attempt is None:
            self._attempt = self._begin()
        encoded = [self._encoded(line, number) for number, line in enumerate(lines, self._num_lines)]
        newest = [*(self._newest.lines or ()), *encoded]
        if len(self._closed) >= _MOST_PARTS or self._num_known_lines + len(newest) >= _FULL_LINES:
            self._merge(newest)
        else:
            self._put(self._newest.name or self._new_name(), newest)
        self._num_lines += len(lines)

    def _begin(self) -> int:
        """Find the parts of earlier attempts, and return the number of this one."""
        names = _part_names(self.storage, self.folder)
        self._closed = [_Part(name) for name in names if not name.endswith(".full.jsonl")]
        return 1 + max((int(name.partition("-")[0]) for name in names), default=0)

    @property
    def _num_known_lines(self) -> int:
        return sum(len(part.lines or ()) for part in self._closed)

    def _encoded(self, line: Line, number: int) -> bytes:
        kept = {"order": [self._attempt, self.lease_number, number], **line}
        if "metrics" in line:
            kept["metrics"] = {name: value if math.isfinite(value) else None for name, value in line["metrics"].items()}
        return json.dumps(kept).encode()

    def _new_name(self, ending: str = "") -> str:
        self._num_parts += 1
        return f"{self._attempt:06d}-{self.lease_number:010d}-{self._num_parts:06d}{ending}.jsonl"

    def _put(self, name: str, lines: list[bytes]) -> None:
        self.storage.write_bytes(f"{self.folder}/{name}", b"\n".join(lines) + b"\n")
        self._newest = _Part(name, lines)
        if len(lines) >= _PART_LINES:
            self._closed.append(self._newest)
            self._newest = _Part("", [])

    def _merge(self, newest: list[bytes]) -> None:
        """Write all parts that are not full as one, and remove them."""
        old = [*self._closed, self._newest]
        for part in self._closed:
            if part.lines is None:
                part.lines = _read_lines(self.storage, f"{self.folder}/{part.name}") or []
        lines = [*(line for part in self._closed for line in part.lines or ()), *newest]
        is_full = len(lines) >= _FULL_LINES
        name = self._new_name(".full" if is_full else "")
        self.storage.write_bytes(f"{self.folder}/{name}", b"\n".join(lines) + b"\n")
        self._closed, self._newest = [] if is_full else [_Part(name, lines)], _Part("", [])
        # from here on the lines are kept: a part that cannot be removed is read as well, and its lines count once
        for part in old:
            if part.name:
                _remove(self.storage, f"{self.folder}/{part.name}")


def _remove(storage: Storage, name: str) -> None:
    try:
        storage.remove(name)
    except StorageError as error:
        log.warning("a part of the history that was merged with others was not removed: %s", error)


def read_history(storage: Storage, run_name: str) -> list[Entry]:
    """Return what is known of each step that counts, in order: after a rollback or a restart, the newest attempt's."""
    entries: list[Entry] = []
    for line in sorted(_all_lines(storage, f"runs/{run_name}/history"), key=lambda line: line["order"]):
        step = line["step"]
        while entries and (entries[-1].step > step):
            entries.pop()
        is_known = bool(entries) and entries[-1].step == step and "train/loss" in entries[-1].metrics
        if line["kind"] == "begin" or (line["kind"] == "restored" and is_known):
            continue
        before = entries.pop() if entries and entries[-1].step == step else Entry(step, 0.0, {})
        metrics = {name: math.nan if value is None else value for name, value in line["metrics"].items()}
        samples = tuple(line.get("samples", before.samples))
        entries.append(Entry(step, line["time"], {**before.metrics, **metrics}, samples))
    return entries


def newest_figures(storage: Storage, run_name: str) -> tuple[int, float | None] | None:
    """Return the newest step of a run and its training loss, by one listing and one read; None if none is known."""
    folder = f"runs/{run_name}/history"
    names = _part_names(storage, folder)
    lines = sorted(_parsed(_read_lines(storage, f"{folder}/{names[-1]}") or ()), key=_order) if names else []
    if not lines:
        return None
    step = lines[-1]["step"]
    losses = (line.get("metrics", {}).get("train/loss") for line in reversed(lines) if line["step"] <= step)
    return step, next((loss for loss in losses if loss is not None), None)


def _order(line: Line) -> list[int]:
    return line["order"]


def _part_names(storage: Storage, folder: str) -> list[str]:
    return [name for name in storage.list(folder) if _PART.fullmatch(name)]


def _all_lines(storage: Storage, folder: str) -> Iterable[Line]:
    """Return each line once; parts that are merged while they are read are listed again."""
    contents: list[list[bytes] | None] = []
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for _ in range(_NUM_LISTINGS):
            names = _part_names(storage, folder)
            contents = [*pool.map(lambda name: _read_lines(storage, f"{folder}/{name}"), names)]
            if None not in contents:
                break
    found = _parsed(line for content in contents for line in content or ())
    return {tuple(line["order"]): line for line in found}.values()


def _read_lines(storage: Storage, name: str) -> list[bytes] | None:
    """Return the lines of a part; None if it is gone."""
    try:
        return storage.read_bytes(name).splitlines()
    except NotFoundError:
        return None


def _parsed(lines: Iterable[bytes]) -> list[Line]:
    """Return the lines without damaged ones, which are logged: the others still tell the most."""
    found = []
    for text in lines:
        try:
            line = json.loads(text)
            if not {"order", "kind", "step", "time"} <= line.keys():
                raise ValueError("no line of a history")
        except (ValueError, AttributeError) as error:
            log.warning("a damaged line of a history was skipped (%s)", error)
            continue
        found.append(line)
    return found
