"""Folders of runs that nobody has trained, written by the functions by which drivers and workers write them."""

from orchestrator.configuration.commands import PretrainConfig
from orchestrator.runs import run as runs
from orchestrator.runs.event_files import EventFiles
from orchestrator.runs.event_writer import EventWriter
from orchestrator.runs.events import DRIVER_KINDS, EventLog, events_folder
from orchestrator.runs.history import History
from orchestrator.runs.lease import lease
from orchestrator.storage.store import Storage


def live(storage: Storage, name: str, num_attempts: int, saves: int = 10, is_done: bool = True) -> None:
    """Write a run of so many attempts, of which all but the last end with a fault."""
    what = {"run": {"name": name}, "storage": {"root": storage.url()}, "tracking": {"mode": "disabled"}}
    config = PretrainConfig.model_validate(what)
    run = runs.open_run(storage, config, runs.training_recipe(config, "data/text-1"))
    driver = EventLog(storage, run.folder, DRIVER_KINDS)
    with lease(storage, name) as held:
        runs.begin(storage, run, config)
        driver.record({"kind": "launch", "host": "node", "pid": 1})
        for number in range(num_attempts):
            is_last = number == num_attempts - 1
            _attempt(storage, run.folder, held.number, number * saves, saves, is_done and is_last)
            if not is_last:
                driver.record({"kind": "fault", "text": "a worker was lost"})
        if is_done:
            run.write_metrics(storage, {"progress/step": num_attempts * saves, "train/loss": 1.0})


def _attempt(storage: Storage, folder: str, lease_number: int, first: int, saves: int, is_done: bool) -> None:
    writer = EventWriter(EventFiles(storage, events_folder(folder)))
    with History(storage, folder, lease_number) as history, writer:
        writer.record({"kind": "begin", "step": first, "world_size": 1})
        for step in range(first + 1, first + saves + 1):
            history.record({"kind": "step", "step": step, "metrics": {"train/loss": 1.0}})
            figures = {"loss": 1.0, "seconds": 0.1, "training_seconds": float(step - first)}
            writer.record({"kind": "checkpoint", "step": step, **figures})
        if is_done:
            writer.record({"kind": "end", "step": first + saves, "training_seconds": float(saves)})
            writer.all()
