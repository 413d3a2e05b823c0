"""A sweep of twelve trials whose driver is killed in the middle ends as one that nothing has disturbed."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from broken_run import KILL, BrokenRun
from tiny_run import arguments, write_text
from waiting import eventually

from orchestrator.runs.events import EventLog
from orchestrator.storage.store import Storage

NUM_TRIALS, STEPS = 12, 400
SETTINGS = (
    "--multirun",
    "sweep.name=twelve",
    f"sweep.num_trials={NUM_TRIALS}",
    "objective=clm",
    "optimizer.learning_rate=tag(log,interval(1e-4,3e-2))",
    "optimizer.schedule=cosine,linear,constant",
    "checkpoint.keep_last=int(interval(1,9))",
    f"training.num_steps={STEPS}",
    "training.val_interval_steps=40",
    "checkpoint.interval_steps=40",
    "tracking.mode=disabled",
)
ASHA = ("sweep=asha", "sweep.grace_period=20")
WHERE = {"local": ("cluster=local",), "ray": ("cluster=ray",)}
SECONDS = 1800


@dataclass(frozen=True)
class Trials:
    """What is stored of the trials of a sweep."""

    root: Path

    def records(self) -> dict[str, Any]:
        found = sorted((self.root / "sweeps/twelve/trials").glob("*.json"))
        return {path.stem: json.loads(path.read_text()) for path in found}

    def in_state(self, state: str) -> set[str]:
        return {name for name, record in self.records().items() if record["state"] == state}

    def starts(self) -> dict[str, int]:
        """Return how many children each trial has had."""
        logs = {path.parent.name: path.read_text() for path in self.root.glob("runs/twelve/*/log.txt")}
        return {name: sum(line.startswith("--- ") for line in log.splitlines()) for name, log in logs.items()}

    def begins(self, trial: str) -> list[int]:
        """Return the step at which each of its trainings began."""
        begun = EventLog(Storage(str(self.root)), f"runs/twelve/{trial}").read("begin")
        return [event["step"] for event in begun]

    def is_half_done(self, trial: str) -> bool:
        """Return whether it has saved, and has the larger part of its steps before it."""
        saved = self.root.glob(f"runs/twelve/{trial}/checkpoints/step_*/COMMITTED")
        return 0 < max((int(path.parent.name.removeprefix("step_")) for path in saved), default=0) <= STEPS // 2

    def metrics(self, trial: str) -> dict[str, float]:
        """Return the final values that depend on nothing but the settings of a trial."""
        found = json.loads((self.root / f"runs/twelve/{trial}/metrics.json").read_text())
        return {name: value for name, value in found.items() if name.startswith(("val/", "train/"))}

    def weights(self, trial: str) -> bytes:
        return (self.root / f"runs/twelve/{trial}/model/model.safetensors").read_bytes()

    @property
    def best(self) -> dict[str, Any]:
        return json.loads((self.root / "sweeps/twelve/best.json").read_text())


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """Return the same trials, drawn by the same seed, each of which has trained to its end."""
    trials = Trials(tmp_path_factory.mktemp("undisturbed"))
    with BrokenRun(command(text, trials, "sweep=random")) as sweep:
        code = end(sweep)
        print(sweep.said)
        assert code == 0
    return trials


def command(text: Path, trials: Trials, *others: str) -> list[str]:
    return arguments(text, trials.root, *SETTINGS, *others)


def end(sweep: BrokenRun) -> int:
    """Return the exit code of a sweep that takes longer than a run."""
    out, _ = sweep.process.communicate(timeout=SECONDS)
    sweep.lines += out.splitlines()
    return sweep.process.returncode


def kill_in_the_middle(sweep: BrokenRun, trials: Trials, needs: tuple[str, ...]) -> None:
    """Kill the driver once a trial is in each of the states, and another one is half done."""

    def is_in_the_middle() -> bool:
        assert sweep.process.poll() is None, (sweep.end(), sweep.said)
        return all(map(trials.in_state, needs)) and any(map(trials.is_half_done, trials.in_state("begun")))

    assert eventually(is_in_the_middle, SECONDS)
    family = {process: words_of(process) for process in psutil.Process(sweep.process.pid).children(recursive=True)}
    agents = {process for process, words in family.items() if words.startswith("ray::") and "Agent" in words}
    sweep.process.send_signal(KILL)
    sweep.process.wait(timeout=60)
    assert eventually(lambda: not any(map(lives, family.keys() - agents)), 60), "processes of the killed sweep live on"
    # two of Ray's own, which hold nothing, try to report its end to the cluster that is gone, for a minute (ray 2.60.0)
    assert eventually(lambda: not any(map(lives, agents)), 180), "Ray's agents live on"


def words_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("cluster", WHERE)
@pytest.mark.parametrize("method", ["random", "asha"])
def test_a_sweep_whose_driver_was_killed_ends_as_an_undisturbed_one(
    method: str, cluster: str, text: Path, undisturbed: Trials, tmp_path: Path
) -> None:
    trials = Trials(tmp_path)
    words = command(text, trials, *WHERE[cluster], *(ASHA if method == "asha" else ("sweep=random",)))
    with BrokenRun(words) as sweep:
        kill_in_the_middle(sweep, trials, ("done",) if method == "random" else ("done", "stopped"))
    before, starts = trials.records(), trials.starts()
    ended = {name for name, record in before.items() if record["state"] in ("done", "stopped")}
    with BrokenRun(words) as sweep:
        code = end(sweep)
        print(sweep.said)
        assert code == 0, sweep.said
    describe(trials, before)
    after = trials.records()
    assert {record["state"] for record in after.values()} == {"done", *(["stopped"] if method == "asha" else [])}
    assert len(after) == NUM_TRIALS
    assert {name: after[name] for name in ended} == {name: before[name] for name in ended}
    assert {name: trials.starts()[name] for name in ended} == {name: starts[name] for name in ended}
    check_the_same_numbers(trials, undisturbed)
    begun = {name for name, record in before.items() if record["state"] == "begun"}
    # what was known of a trial at the kill may be enough for ASHA to stop it
    assert any(trials.begins(name)[1:] > [0] for name in begun) or begun & trials.in_state("stopped")


def check_the_same_numbers(trials: Trials, undisturbed: Trials) -> None:
    """Compare what was measured in any trial, and what came out of those that were trained to their end."""
    expected, done = undisturbed.records(), trials.in_state("done")
    for name, record in trials.records().items():
        assert record["metric"].items() <= expected[name]["metric"].items(), name
    for name in done:
        assert trials.metrics(name) == undisturbed.metrics(name), name
        assert trials.weights(name) == undisturbed.weights(name), name
    last = {name: expected[name]["metric"][str(STEPS)] for name in done}
    best = min(last, key=lambda name: last[name])
    assert (trials.best["trial"], trials.best["value"]) == (best, last[best])
    if len(done) == NUM_TRIALS:
        assert trials.best == undisturbed.best


def describe(trials: Trials, before: dict[str, Any]) -> None:
    """Print what became of each trial, for who reads the test's output."""
    for name, record in trials.records().items():
        state = before[name]["state"] if name in before else "not begun"
        print(f"{name}: {state} at the kill; {trials.starts()[name]} starts, trainings began at {trials.begins(name)}")
        print(f"       {record['state']}, {list(record['metric'].items())[-1:]}")
    print(f"at {time.ctime()}")
