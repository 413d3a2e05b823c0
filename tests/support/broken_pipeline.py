"""Pipelines whose driver is killed at chosen moments, and what their stages have left in the store."""

import json
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from broken_run import KILL, BrokenRun, words_of
from waiting import eventually

from orchestrator.storage.store import Storage

PIPELINE_SECONDS = 1800
"""Within which eight tiny stages end, on a machine that does much else."""
END_SECONDS = 60
"""Within which nothing of a killed driver is left."""


class Stored:
    """What a pipeline has left below a storage root."""

    def __init__(self, root: str | Path, pipeline: str = "eight") -> None:
        self.root, self.pipeline, self.storage = str(root), pipeline, Storage(str(root))

    def starts(self) -> dict[str, int]:
        """Return how often the child of each stage was started, by the headings of its log."""
        names = self.storage.list(f"runs/{self.pipeline}", folders_only=True)
        logs = {name: f"runs/{self.pipeline}/{name}/log.txt" for name in names}
        texts = {name: self.storage.read_bytes(log).decode() for name, log in logs.items() if self.storage.exists(log)}
        return {_stage(name): len(re.findall(r"(?m)^--- .* attempt \d+: ", text)) for name, text in texts.items()}

    def done(self) -> dict[str, dict[str, Any]]:
        """Return the records of the stages that are done, by name; one that is not whole is an error."""
        names = [f"stages/{claim}/done.json" for claim in self.storage.list("stages")]
        records = [json.loads(self.storage.read_bytes(name)) for name in names if self.storage.exists(name)]
        return {_stage(record["path"]): record for record in records}

    def attempts(self) -> dict[str, int]:
        """Return the number of the attempt that has completed each stage."""
        return {name: record["attempt"] for name, record in self.done().items()}

    def results(self) -> dict[str, bytes]:
        """Return the final weights of the stages that train, and the figures of those that evaluate."""
        files = {"pretrain": "model/model.safetensors", "evaluate": "evaluation.json"}
        found = {name: (record, files.get(record["command"])) for name, record in self.done().items()}
        return {name: self._content(f"{record['path']}/{file}") for name, (record, file) in found.items() if file}

    def _content(self, file: str) -> bytes:
        """Return what an undisturbed pipeline would have written, too: no place and no time."""
        content = self.storage.read_bytes(file)
        if not file.endswith(".json"):
            return content
        return json.dumps([one["metrics"] for one in json.loads(content)["text"].values()]).encode()


def _stage(folder: str) -> str:
    return re.sub(r"-[0-9a-f]{8}(-\d+)?$", "", folder.rpartition("/")[2])


MOMENTS: dict[str, tuple[str, float]] = {
    "while the driver starts": ("", 6.0),
    "when a stage begins": ("runs/*/*/stage.json", 0.3),
    "while a child starts": ("runs/*/*/log.txt", 5.0),
    "while a child works": ("runs/*/*/config.yaml", 5.0),
    "when a checkpoint is committed": ("runs/*/*/checkpoints/*", 0.3),
    "when a result is committed": ("runs/*/*/metrics.json", 0.3),
    "between stages": ("stages/*/done.json", 0.3),
}
"""What is waited for (a new file that matches), and how long after it the driver is killed at most."""


@dataclass(frozen=True)
class Kill:
    """When a driver is killed."""

    moment: str
    delay: float
    most_done: int
    """At the latest when so many stages are done, so that the kills are spread over the whole pipeline."""


def kills(seed: int, number: int, num_stages: int) -> Iterator[Kill]:
    """Yield kills at moments of every kind in a random order."""
    chosen = random.Random(seed)
    names: list[str] = []
    while len(names) < number:
        names += chosen.sample(list(MOMENTS), len(MOMENTS))
    for index, name in enumerate(names[:number]):
        yield Kill(name, chosen.uniform(0, MOMENTS[name][1]), max(1, (index + 1) * (num_stages - 1) // number))


def killed(command: list[str], stored: Stored, kill: Kill) -> str:
    """Start the driver, kill it, and return what ran."""
    before = _matching(stored.root, kill.moment)
    with BrokenRun(command) as run:
        while MOMENTS[kill.moment][0] and _matching(stored.root, kill.moment) <= before:
            _check_runs(run)
            if len(stored.done()) >= kill.most_done:
                break
            time.sleep(0.002)
        time.sleep(kill.delay)
        _check_runs(run)
        below = _all_below(run.process.pid)
        words = [word for process in processes_of(stored.root) for word in process]
        run.process.send_signal(KILL)
        run.end()
        assert eventually(lambda: not _alive(below), seconds=END_SECONDS), _alive(below)
        assert eventually(lambda: not processes_of(stored.root), seconds=END_SECONDS), processes_of(stored.root)
    folder = re.compile(rf"(?:run\.name={stored.pipeline}/|to=.*/)([^/]+)-[0-9a-f]{{8}}$")
    return ", ".join(sorted({found[1] for word in words if (found := folder.match(word))})) or "no child"


def _check_runs(run: BrokenRun) -> None:
    """Fail with what a driver has said that ended before it was killed."""
    if run.process.poll() is not None:
        raise AssertionError(f"ended with {run.end()}:\n{run.said}")


def _matching(root: str, moment: str) -> set[Path]:
    return set(Path(root).glob(MOMENTS[moment][0])) if MOMENTS[moment][0] else set()


def _all_below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def processes_of(root: str) -> list[list[str]]:
    """Return the command lines of all processes, wherever they were started, that work on a storage root."""
    found = [words_of(process) for process in psutil.process_iter() if process.pid != os.getpid()]
    return [words for words in found if any(root in word for word in words)]


def killed_and_continued(command: list[str], stored: Stored, num_stages: int, seed: int, number: int) -> None:
    """Kill a pipeline so many times, and let it run to its end; what is done is never run again."""
    for kill in kills(seed, number, num_stages):
        done, starts = stored.done(), stored.starts()
        ran = killed(command, stored, kill)
        assert [stored.starts()[name] - starts[name] for name in done] == [0] * len(done)
        print(f"{kill.moment} + {kill.delay:.2f} s; ran: {ran}; done: {len(done)} -> {len(stored.done())}", flush=True)
    done, starts = stored.done(), stored.starts()
    with BrokenRun(command) as run:
        assert run.end(PIPELINE_SECONDS) == 0, run.said
    assert [stored.starts()[name] - starts[name] for name in done] == [0] * len(done)
    print(f"starts of each stage: {stored.starts()}; attempts: {stored.attempts()}", flush=True)
