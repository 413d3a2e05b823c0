"""One trial of a sweep, and what is recorded of it.

sweeps/NAME/sweep.json           what the sweep is: it goes on only with the same
sweeps/NAME/trials/00007.json    {"overrides", "run", "state", "metric": {step: value}, "error"}, and "suggested"
                                 {setting: value or position} where the trial was suggested
sweeps/NAME/best.json            the best trial that is done
sweeps/NAME/lease/               one driver at a time
runs/NAME/00007/                 the trial's run, and log.txt
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.checkpoints.attempt import SWEEPS, Attempt
from orchestrator.errors import ConfigError, DamagedFileError, LeaseError
from orchestrator.runs.json_files import read_object, write_object
from orchestrator.runs.lease import holder, lease
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage

State = Literal["waiting", "begun", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial: the command's overrides with one value for each swept setting."""

    number: int
    words: tuple[str, ...]
    """The overrides, as they are typed for a single run."""
    swept: Mapping[str, str]
    """The swept settings with their values."""
    suggested: Mapping[str, float] = field(default_factory=dict)
    """The same as values or positions, if a search has suggested the trial."""

    @property
    def name(self) -> str:
        """The last part of its run's name."""
        return trial_name(self.number)


def trial_name(number: int) -> str:
    """Return the last part of the name of a trial's run."""
    return f"{number:05d}"


@dataclass
class Outcome:
    """What is known of a trial."""

    state: State = "waiting"
    metric: dict[int, float] = field(default_factory=dict)
    """By step; nan where it was not finite, which is null in the record."""
    error: str = ""

    @property
    def value(self) -> float | None:
        """The newest value of the metric."""
        return self.metric[max(self.metric)] if self.metric else None


@contextmanager
def one_driver(storage: Storage, name: str, on_loss: Callable[[], None]) -> Iterator[Attempt]:
    """Hold the lease of a sweep.

    Raises:
        LeaseError: another driver runs it.
    """
    if found := holder(storage, name, SWEEPS):
        raise LeaseError(f"sweep.name={name}: process {found['pid']} on {found['host']} runs it; wait or stop it")
    with lease(storage, name, on_loss=on_loss, above=SWEEPS) as attempt:
        yield attempt


def check_same(storage: Storage, name: str, content: Mapping[str, Any]) -> None:
    """Record what a sweep is.

    Raises:
        ConfigError: there is another one of its name.
    """
    place = f"{SWEEPS}/{name}/sweep.json"
    found = read_object(storage, place, "remove it, and the same command goes on")
    if found is None:
        write_object(storage, place, dict(content))
    elif differing := [key for key, value in content.items() if found.get(key) != value]:
        lines = [f"{key} was {found.get(key)}, now {content[key]}" for key in differing]
        raise ConfigError(f"sweep.name={name}: is another sweep ({'; '.join(lines)}); choose another sweep.name")


def read_outcome(storage: Storage, name: str, trial: Trial) -> Outcome:
    """Return what is recorded of a trial; nothing if its record is damaged, so that it goes on from its run."""
    try:
        found = read_object(storage, _place(name, trial), "")
        if found is None:
            return Outcome()
        metric = {int(step): math.nan if value is None else float(value) for step, value in found["metric"].items()}
        return Outcome(found["state"], metric, found.get("error", ""))
    except (DamagedFileError, KeyError, TypeError, ValueError, AttributeError):
        return Outcome()


def read_suggestion(storage: Storage, name: str, number: int) -> dict[str, float] | None:
    """Return what was suggested for a trial; None if nothing was.

    Raises:
        DamagedFileError: its record cannot be read.
    """
    one = Trial(number, (), {})
    remedy = f"remove it and runs/{name}/{one.name}, and the same command tries something else"
    found = read_object(storage, _place(name, one), remedy)
    if found is None:
        return None
    suggested = found.get("suggested")
    if not isinstance(suggested, dict):
        raise DamagedFileError(f"{storage.url(_place(name, one))}: says not what was suggested; {remedy}")
    return suggested


def write_outcome(storage: Storage, name: str, trial: Trial, outcome: Outcome) -> None:
    """Record what is known of a trial."""
    content = {
        "overrides": [redact(word) for word in trial.words],
        "run": f"{name}/{trial.name}",
        "state": outcome.state,
        "metric": {
            str(step): value if math.isfinite(value) else None for step, value in sorted(outcome.metric.items())
        },
        "error": redact(outcome.error),
        **({"suggested": dict(trial.suggested)} if trial.suggested else {}),
    }
    write_object(storage, _place(name, trial), content)


def _place(name: str, trial: Trial) -> str:
    return f"{SWEEPS}/{name}/trials/{trial.name}.json"
