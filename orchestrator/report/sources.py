"""What runs, evaluations and stages have left in storage, as a report needs it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import yaml

from orchestrator.artifacts.recipe import flat
from orchestrator.errors import UserError
from orchestrator.evaluation.record import FILE as EVALUATION_FILE
from orchestrator.report.curves import Point
from orchestrator.runs.history import Entry, read_history
from orchestrator.runs.json_files import read_object
from orchestrator.runs.run import no_such_run
from orchestrator.runs.state import RunState, read_run
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

_REMEDY = "restore it from a copy, or leave it out of the report"
_NUM_READERS = 8
_UNKNOWN_MFU = ("throughput/mfu", 0.0)
"""Where the peak rate of the device is not known, as on a CPU."""


@dataclass(frozen=True)
class ReportedRun:
    """A run, and what it has left."""

    label: str
    state: RunState
    history: Sequence[Entry]
    settings: Mapping[str, Any]
    """All settings by their dotted names."""

    @property
    def name(self) -> str:
        return self.state.run.name

    @property
    def command(self) -> str:
        return str(self.state.run.recipe.get("command", "pretrain"))

    @property
    def curves(self) -> dict[str, list[Point]]:
        """Points by step, for each metric."""
        found: dict[str, list[Point]] = {}
        for entry in self.history:
            for name, value in entry.metrics.items():
                found.setdefault(name, []).append((entry.step, value))
        return found

    @property
    def metrics(self) -> dict[str, float]:
        """The final figures, or the newest ones of a run that has none yet."""
        found = self.state.metrics
        if found is None:
            found = {name: value for entry in self.history for name, value in entry.metrics.items()}
        return {name: value for name, value in found.items() if _is_known(value) and (name, value) != _UNKNOWN_MFU}

    @property
    def steps(self) -> str:
        """Finished steps, and of how many."""
        done = self.history[-1].step if self.history and self.state.metrics is None else self.state.step
        return f"{done:,}" + ("" if self.state.num_steps is None else f" of {self.state.num_steps:,}")


@dataclass(frozen=True)
class ReportedEvaluation:
    """What was measured of a model, and what came out."""

    subject: str
    model: str
    created: str
    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]
    labels: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] = ()
    samples: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Sources:
    """Everything that a report is made of."""

    runs: Sequence[ReportedRun] = ()
    evaluations: Sequence[ReportedEvaluation] = ()
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The graph, if there is one: `command`, `state`, `seconds` and `inputs` of each stage."""


def read_sources(storage: Storage, runs: Iterable[str], stages: Iterable[str], graph: Mapping[str, Any]) -> Sources:
    """Return what is known of runs and of the folders of stages.

    Raises:
        UserError: there is no such run, or no such stage.
        DamagedFileError: one of their files is damaged.
    """
    names = {name: name for name in runs}
    folders = [_below(storage, stage) for stage in stages]
    for folder in folders:
        if not storage.list(folder):
            raise UserError(f"stages={folder}: no such folder in {storage.url()}, or it is empty; correct the path")
        if folder.startswith("runs/") and storage.exists(f"{folder}/recipe.json"):
            names.setdefault(folder.removeprefix("runs/"), _label(folder))
    labels = Counter(names.values())
    names = {name: label if labels[label] == 1 else name for name, label in names.items()}
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        found = [*pool.map(lambda item: _run(storage, *item), names.items())]
    places = [*folders, *(f"{run.state.run.folder}/{kind}" for run in found for kind in ("model", "adapter"))]
    return Sources(found, _evaluations(storage, dict.fromkeys(places)), dict(graph))


def _below(storage: Storage, folder: str) -> str:
    """Return a folder relative to the storage root, which may also be given as an absolute path or URL."""
    return folder.removeprefix(f"{storage.url()}/").strip("/")


def _label(folder: str) -> str:
    """Return a stage's name: its folder ends with the beginning of its fingerprint."""
    last = folder.rsplit("/", 1)[-1]
    name, _, digits = last.rpartition("-")
    return name if name and len(digits) == 8 and set(digits) <= set("0123456789abcdef") else last


def _run(storage: Storage, name: str, label: str) -> ReportedRun:
    state = read_run(storage, name)
    if state is None:
        raise no_such_run(storage, "runs", name)
    return ReportedRun(label, state, read_history(storage, name), _settings(storage, state))


def _settings(storage: Storage, state: RunState) -> dict[str, Any]:
    """Return the settings of a run as it was configured, or, without that file, those of its recipe."""
    try:
        content = yaml.safe_load(storage.read_bytes(f"{state.run.folder}/config.yaml"))
    except (NotFoundError, yaml.YAMLError):
        content = None
    given = content if isinstance(content, dict) else state.run.recipe
    return {"command": state.run.recipe.get("command", "pretrain"), **flat(given)}


def _evaluations(storage: Storage, folders: Iterable[str]) -> list[ReportedEvaluation]:
    """Return the evaluations in these folders, each once."""
    found: dict[tuple[str, str], ReportedEvaluation] = {}
    for folder in folders:
        content = read_object(storage, f"{folder}/{EVALUATION_FILE}", _REMEDY) or {}
        for subject, entries in content.items():
            for number, entry in entries.items():
                found.setdefault((subject, number), _evaluation(subject, entry))
    return sorted(found.values(), key=lambda one: (one.subject, one.created))


def _evaluation(subject: str, entry: Mapping[str, Any]) -> ReportedEvaluation:
    details = entry.get("details", {})
    return ReportedEvaluation(
        subject=subject,
        model=str(entry.get("model", {}).get("path", "")),
        created=str(entry.get("created", "")),
        metrics={name: value for name, value in entry.get("metrics", {}).items() if _is_known(value)},
        settings=flat(entry.get("settings", {})),
        labels=details.get("labels", ()),
        confusion=details.get("confusion", ()),
        samples=details.get("samples", ()),
    )


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
