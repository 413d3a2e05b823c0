"""Which data each step of a run was trained on, through restarts and rollbacks, read from its events.

Steps are counted from 1, as in curves and messages; data steps and samples from 0. Step s has the data of data step
s - 1 + offset, where the offset counts the data steps that rollbacks have left out so far.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.checkpoints.names import name_of, newest_committed
from orchestrator.checkpoints.parts import STATE
from orchestrator.distributed.runtime import Event
from orchestrator.errors import DamagedFileError
from orchestrator.runs.events import EventLog
from orchestrator.runs.history import newest_figures
from orchestrator.runs.run import Run
from orchestrator.storage.store import Storage

_NEW_PROCESSES = ("launch", "fault", "restart", "resize")
_KINDS = (*_NEW_PROCESSES, "begin", "skip", "rollback", "stop", "end")

_NOT_BEGUN: Mapping[str, Any] = {"last": 0, "skipped": {}, "is_left": False}


@dataclass(frozen=True)
class Stretch:
    """Steps that were trained one after another, from the beginning of a fit on."""

    after: int
    """Steps that were finished when it began."""
    data_offset: int
    world_size: int
    micro_batch_size: int | None
    """Samples that a worker computed at once; None if an earlier version has not recorded it."""
    last: int = 0
    """The last of its steps, as far as is known."""
    skipped: Mapping[int, str] = field(default_factory=dict)
    """Steps that the guard has skipped, each with the reason."""
    is_left: bool = False
    """Whether the run went back from its end because too many steps were bad."""

    def data_step(self, step: int) -> int:
        """Return the data step of a step."""
        return step - 1 + self.data_offset

    def has(self, step: int) -> bool:
        """Return whether it has trained a step, as far as is known."""
        return self.after < step <= self.last


@dataclass(frozen=True)
class DataSteps:
    """What is known of the data of a run's steps."""

    stretches: Sequence[Stretch]
    """In the order of training."""

    @classmethod
    def of(cls, events: Iterable[Event], global_batch_size: int, reached: int) -> "DataSteps":
        """Return what follows from events.

        Args:
            events: Those of `_KINDS` at least, in order.
            global_batch_size: Samples in a step.
            reached: The newest step that is known from elsewhere.
        """
        found, gone_back = list[Stretch](), None
        for event in events:
            kind = event["kind"]
            if kind == "begin":
                found.append(_begun(found, event, gone_back))
            if kind == "begin" or kind in _NEW_PROCESSES:
                gone_back = None  # a process that was killed before `begin` has its rollback to do again
            elif kind == "rollback" and found:
                found[-1] = replace(found[-1], last=event["from_step"], is_left=True)
                data_step = (event["samples"][1] + 1) // global_batch_size
                gone_back = replace(found[-1], after=event["step"], data_offset=data_step - event["step"], **_NOT_BEGUN)
            elif kind == "skip" and found:
                found[-1] = replace(found[-1], skipped={**found[-1].skipped, event["step"] + 1: event["reason"]})
                _reach(found, event["step"] + 1)
            elif kind in ("stop", "end"):
                _reach(found, event["step"])
        if gone_back is not None:
            found.append(gone_back)
        _reach(found, reached)
        return cls(tuple(found))

    @property
    def reached(self) -> int:
        """The newest step of the run."""
        return max(self.stretches[-1].last, self.stretches[-1].after) if self.stretches else 0

    def lasting(self, step: int) -> Stretch | None:
        """Return the stretch whose training of a step has led to the run's present state; None if there is none."""
        number = _holding(self.stretches, step)
        return None if number is None or not self.stretches[number].has(step) else self.stretches[number]

    def of_step(self, step: int) -> list[Stretch]:
        """Return all stretches that have trained a step, each of them with other data, the newest first."""
        found: dict[int, Stretch] = {}
        for one in reversed(self.stretches):
            if one.has(step):
                found.setdefault(one.data_offset, one)
        return [*found.values()]

    def of_data_step(self, data_step: int) -> list[tuple[int, Stretch]]:
        """Return the steps that were trained on the data of a data step, the newest first."""
        steps = ((data_step + 1 - one.data_offset, one) for one in reversed(self.stretches))
        found: dict[int, Stretch] = {}
        for step, one in steps:
            if one.has(step):
                found.setdefault(step, one)
        return [*found.items()]

    def offset_after(self, step: int) -> int:
        """Return the data offset that a checkpoint after a step holds."""
        return _offset_after(self.stretches, step)


def read_data_steps(storage: Storage, run: Run, global_batch_size: int) -> DataSteps:
    """Return what a run's files tell of the data of its steps; their number does not grow with that of the steps."""
    events = EventLog(storage, run.folder).read(*_KINDS)
    newest = newest_figures(storage, run.name)
    metrics = run.metrics(storage) or {}
    saved = next(newest_committed(storage, run.name), 0)
    known = [saved, newest[0] if newest else 0, int(metrics.get("progress/step", 0))]
    found = DataSteps.of(events, global_batch_size, max(known))
    if saved:
        _check(storage, run, found, saved)
    return found


def _check(storage: Storage, run: Run, found: DataSteps, saved: int) -> None:
    """Raise DamagedFileError if a checkpoint shows that an event is missing: steps would be told of other data."""
    # not as `Progress`, which imports Lightning
    stored = json.loads(storage.read_bytes(f"{name_of(run.name, saved)}/{STATE}")).get("data_offset", 0)
    if not found.stretches or found.offset_after(saved) != stored:
        by_events, by_checkpoint = (saved - 1 + offset for offset in (found.offset_after(saved), stored))
        raise DamagedFileError(
            f"{storage.url(run.folder)}/events: an event is missing; by them step {saved} had the data of data step "
            f"{by_events}, and by its checkpoint that of {by_checkpoint}; restore them from a copy"
        )


def batch_command(run_name: str, first_sample: int, last_sample: int) -> str:
    """Return the command that shows samples of a run, whatever becomes of the step that has used them."""
    return f"orchestrator batch run.name={run_name} sample={first_sample}-{last_sample}"


def _begun(found: list[Stretch], event: Event, gone_back: Stretch | None) -> Stretch:
    """Return the stretch that begins.

    Args:
        found: Those before it.
        event: Its `begin`.
        gone_back: What is known of it from the rollback before it; None if it goes on as a checkpoint says.
    """
    after = event["step"]
    number = _holding(found, after)
    if number is not None:  # it had come so far, or there would be no such checkpoint
        found[number] = replace(found[number], last=max(found[number].last, after))
    offset = gone_back.data_offset if gone_back else _offset_after(found, after)
    return Stretch(after, offset, event["world_size"], event.get("micro_batch_size"))


def _offset_after(stretches: Sequence[Stretch], step: int) -> int:
    """Return the data offset in the checkpoint after a step."""
    number = _holding(stretches, step)
    return 0 if number is None else stretches[number].data_offset


def _holding(stretches: Sequence[Stretch], step: int) -> int | None:
    """Return the number of the newest stretch that may have trained a step; None if there is none."""
    return next((number for number in reversed(range(len(stretches))) if stretches[number].after < step), None)


def _reach(found: list[Stretch], step: int) -> None:
    """Take note that the newest stretch has trained a step."""
    if found:
        found[-1] = replace(found[-1], last=max(found[-1].last, step))
