"""`orchestrator runs`: what it shows of runs, from their files alone."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lived_runs import live
from living_driver import living_driver
from store_requests import store_requests
from waiting import eventually

from orchestrator.artifacts import artifact
from orchestrator.artifacts.digests import digest_bytes
from orchestrator.checkpoints.names import name_of
from orchestrator.cli import main
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.errors import RefusedError, RunMismatchError
from orchestrator.runs import lease as leases
from orchestrator.runs.event_files import MERGED_FILES
from orchestrator.runs.events import EventLog
from orchestrator.runs.history import History
from orchestrator.runs.run import begin, find_run, keep, open_run
from orchestrator.runs.state import RunState, read_run, read_runs
from orchestrator.storage.store import Storage

ROOT = Path(__file__).resolve().parents[3]
RECIPE = {"command": "pretrain", "training": {"num_steps": 1000}}
METRICS = {"progress/step": 1000, "train/loss": 1.25, "goodput/fraction": 0.9, "faults/restarts": 0}

LAUNCH = {"kind": "launch", "time": 0}
BEGIN = {"kind": "begin", "time": 10, "step": 0}
SAVE = {"kind": "checkpoint", "time": 61, "step": 50, "loss": 2.5, "training_seconds": 50, "seconds": 1.0}
STOP = {"kind": "stop", "time": 62, "step": 50, "signal": 15}
FAULT = {"kind": "fault", "time": 80, "text": "worker 1: killed by SIGKILL"}
RESTART = {"kind": "restart", "time": 80, "number": 1}
AGAIN = {"kind": "begin", "time": 92, "step": 50}
END = {"kind": "end", "time": 110, "step": 1000, "training_seconds": 18}


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def write_run(
    storage: Storage,
    name: str,
    events: Sequence[dict[str, Any]] = (),
    metrics: dict[str, float] | None = None,
    began: float | None = None,
) -> str:
    """Write a run's files as its driver and workers do, and return its folder; times count from `began`."""
    folder = f"runs/{name}"
    began = time.time() - 7200 if began is None else began
    write_json(storage, f"{folder}/recipe.json", RECIPE)
    for number, event in enumerate(events):
        event = {**event, "time": began + event["time"]}
        write_json(storage, f"{folder}/events/{number:017d}-{event['kind']}-0000.json", event)
    if metrics is not None:
        write_json(storage, f"{folder}/metrics.json", metrics)
    return folder


def test_checkpoints_without_a_recipe_are_continued_by_no_run(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig.model_validate({"run": {"name": "a"}})
    artifact.commit(storage, name_of("a", 10), {}, {"kind": "checkpoint"})
    with pytest.raises(RunMismatchError, match=r"run\.name=a: .* has checkpoints but no recipe\.json"):
        open_run(storage, config, RECIPE)
    write_json(storage, "runs/a/recipe.json", RECIPE)
    assert open_run(storage, config, RECIPE).name == "a"


@pytest.mark.parametrize("renewal_seconds", [0.01, 60.0], ids=["while it runs", "just before it ends"])
@pytest.mark.parametrize("removed", ["", "/recipe.json"], ids=["folder", "recipe"])
def test_what_was_removed_from_under_a_run_comes_back(
    removed: str, renewal_seconds: float, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", renewal_seconds)
    config = PretrainConfig.model_validate({"run": {"name": "a"}})
    run = open_run(storage, config, RECIPE)
    with leases.lease(storage, "a", on_renewal=lambda: keep(storage, run, config)):
        begin(storage, run, config)
        before = {name: storage.read_bytes(f"runs/a/{name}") for name in ("recipe.json", "config.yaml", "run.json")}
        if folder := storage.local_path(f"runs/a{removed}"):
            folder.rename(folder.parent / "removed")  # at once: a renewal in mid-removal would leave half of it
        else:
            storage.remove(f"runs/a{removed}")
        run.write_metrics(storage, {"progress/step": 10})
        assert renewal_seconds > 1 or eventually(lambda: find_run(storage, "a"))
    assert {name: storage.read_bytes(f"runs/a/{name}") for name in before} == before
    assert run.metrics(storage) == {"progress/step": 10}
    assert leases.holder(storage, "a") is None


def test_files_in_events_that_are_no_events_disturb_nothing(storage: Storage) -> None:
    folder = write_run(storage, "a", [LAUNCH, BEGIN, SAVE])
    for name in ("notes.json", ".json", "1-launch.json", "README.md"):
        storage.write_bytes(f"{folder}/events/{name}", b"{}")
    (state,) = read_runs(storage)
    assert [event["kind"] for event in state.events] == ["launch", "begin", "checkpoint"]
    assert [event["kind"] for event in EventLog(storage, folder).read("begin")] == ["begin"]


def test_event_that_vanishes_after_it_was_listed_is_passed_over(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(storage, "a", [LAUNCH, BEGIN])
    names = storage.list(f"{folder}/events")
    storage.remove(f"{folder}/events/{names[0]}")
    monkeypatch.setattr(Storage, "list", lambda *_, **__: names)
    assert [event["kind"] for event in EventLog(storage, folder).read()] == ["begin"]


def test_run_that_cannot_be_read_hides_no_other(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_run(storage, name, [LAUNCH])
    read = Storage.read_bytes

    def denied(self: Storage, name: str) -> bytes:
        if name == "runs/a/recipe.json":
            raise RefusedError("cannot read runs/a/recipe.json: permission denied")
        return read(self, name)

    monkeypatch.setattr(Storage, "read_bytes", denied)
    found = {state.run.name: state.damage for state in read_runs(storage)}
    assert found == {"a": "cannot read runs/a/recipe.json: permission denied", "b": None}


def write_json(storage: Storage, name: str, value: Any) -> None:
    storage.write_bytes(name, json.dumps(value).encode())


def write_lease(storage: Storage, folder: str, **changes: Any) -> None:
    write_json(storage, f"{folder}/lease/0000000001.json", living_driver(**changes))


def write_checkpoint(storage: Storage, name: str, step: int) -> str:
    folder = name_of(name, step)
    storage.write_bytes(f"{folder}/state.json", b"{}")
    artifact.commit(storage, folder, {"state.json": digest_bytes(b"{}")}, {"kind": "checkpoint"})
    return folder


def test_running_run_shows_its_newest_step_and_loss_and_one_that_was_lost_its_last_checkpoint(
    storage: Storage,
) -> None:
    folder = write_run(storage, "a", [LAUNCH, BEGIN, SAVE])
    with History(storage, folder) as history:
        history.record({"kind": "step", "step": 73, "metrics": {"train/loss": 2.125}})
    assert (state_of(storage, "a").step, state_of(storage, "a").loss) == (50, 2.5)
    write_lease(storage, folder)
    assert (state_of(storage, "a").step, state_of(storage, "a").loss) == (73, 2.125)


def state_of(storage: Storage, name: str) -> RunState:
    state = read_run(storage, name)
    assert state is not None
    return state


def said_by(capsys: pytest.CaptureFixture[str], storage: Storage, *words: str) -> str:
    assert main(["runs", *words, f"storage.root={storage.url()}"]) == 0
    return capsys.readouterr().out


def test_run_with_its_final_figures_is_done(storage: Storage) -> None:
    write_run(storage, "a", [LAUNCH, BEGIN, SAVE, END], METRICS)
    found = state_of(storage, "a")
    assert (found.state, found.step, found.num_steps, found.loss) == ("done", 1000, 1000, 1.25)


def test_run_is_done_while_its_driver_still_shows_the_figures(storage: Storage) -> None:
    write_lease(storage, write_run(storage, "a", [LAUNCH, BEGIN, SAVE, END], METRICS))
    assert state_of(storage, "a").state == "done"


def test_run_with_a_living_driver_is_running_with_the_loss_of_its_last_checkpoint(storage: Storage) -> None:
    write_lease(storage, write_run(storage, "a", [LAUNCH, BEGIN, SAVE]))
    found = state_of(storage, "a")
    assert (found.state, found.step, found.loss) == ("running", 50, 2.5)


def test_run_that_has_not_begun_to_train_is_running_without_a_loss(storage: Storage) -> None:
    write_lease(storage, write_run(storage, "a", [LAUNCH]))
    found = state_of(storage, "a")
    assert (found.state, found.step, found.loss) == ("running", 0, None)


def test_run_that_saved_on_a_notice_and_ended_is_stopped(storage: Storage) -> None:
    write_lease(storage, write_run(storage, "a", [LAUNCH, BEGIN, SAVE, STOP]), renewed=0.0)
    assert state_of(storage, "a").state == "stopped"


@pytest.mark.parametrize(
    "events",
    [[], [LAUNCH, BEGIN, SAVE], [LAUNCH, BEGIN, SAVE, FAULT], [LAUNCH, BEGIN, SAVE, STOP, LAUNCH]],
    ids=["never launched", "lost", "failed", "lost after a stop"],
)
def test_run_without_driver_figures_or_stop_is_interrupted(storage: Storage, events: list[dict]) -> None:
    write_lease(storage, write_run(storage, "a", events), host="elsewhere", renewed=time.time() - 3600)
    assert state_of(storage, "a").state == "interrupted"


def test_loss_of_a_checkpoint_that_was_skipped_is_not_shown(storage: Storage) -> None:
    skipped = {**SAVE, "time": 70, "step": 60, "loss": 9.0}
    write_run(storage, "a", [LAUNCH, BEGIN, SAVE, skipped, FAULT, RESTART, AGAIN])
    found = state_of(storage, "a")
    assert (found.step, found.loss) == (50, 2.5)


def test_run_that_rolled_back_has_the_steps_and_the_loss_from_before(storage: Storage) -> None:
    undone = {**SAVE, "time": 70, "step": 60, "loss": 9.0}
    rollback = {"kind": "rollback", "time": 75, "step": 50, "from_step": 65}
    write_run(storage, "a", [LAUNCH, BEGIN, SAVE, undone, rollback])
    found = state_of(storage, "a")
    assert (found.step, found.loss, found.faults) == (50, 2.5, [])


def test_each_fault_has_its_time_until_training_began_again(storage: Storage) -> None:
    last = {**FAULT, "time": 100, "text": "lost"}
    write_run(storage, "a", [LAUNCH, BEGIN, SAVE, FAULT, RESTART, AGAIN, last])
    found = [(fault.text, fault.recovery_seconds) for fault in state_of(storage, "a").faults]
    assert found == [(FAULT["text"], pytest.approx(12)), ("lost", None)]


def test_ordered_faults_are_shown_in_the_steps_that_they_struck(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    injected = {"kind": "fault_injected", "fault": "kill_rank", "at_step": 60, "rank": 1, "step": 59, "time": 70}
    refused = {**injected, "fault": "full_disk", "step": 60, "time": 95}
    write_run(storage, "tiny", [LAUNCH, BEGIN, SAVE, injected, FAULT, RESTART, AGAIN, refused])
    shown = " ".join(said_by(capsys, storage, "show", "tiny").replace("│", " ").split())
    assert "requested faults kill_rank on rank 1 in step 60; full_disk on rank 1 in the save after step 60" in shown
    assert len(state_of(storage, "tiny").faults) == 1


def test_skipped_steps_and_rollbacks_are_shown(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    skips = [{"kind": "skip", "time": 70, "step": step} for step in (51, 59, 60, 61)]
    rollback = {"kind": "rollback", "time": 75, "step": 50, "from_step": 62}
    write_run(storage, "tiny", [LAUNCH, BEGIN, SAVE, *skips, rollback, AGAIN, {**skips[0], "time": 99}])
    shown = " ".join(said_by(capsys, storage, "show", "tiny").replace("│", " ").split())
    assert "skipped steps 5 (52, 60 to 62, 52) rollbacks from step 62 to 50" in shown


def test_newest_run_comes_first_and_other_folders_are_no_runs(storage: Storage) -> None:
    for name, began in (("old", 1000.0), ("new", 3000.0), ("middle", 2000.0)):
        write_run(storage, name, [LAUNCH], began=began)
    write_run(storage, "never-launched")
    storage.write_bytes("runs/notes/readme.txt", b"mine")
    storage.write_bytes("runs/file.txt", b"mine")
    assert [state.run.name for state in read_runs(storage)] == ["new", "middle", "old", "never-launched"]


def test_table_shows_every_run_within_80_columns(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    write_run(storage, "quickstart", [LAUNCH, BEGIN, SAVE, END], METRICS, began=now - 3 * 86400 - 60)
    write_lease(storage, write_run(storage, "now", [LAUNCH, BEGIN, SAVE, FAULT, RESTART, AGAIN], began=now - 330))
    write_run(storage, "pretrain-1a2b3c4d")
    lines = said_by(capsys, storage).splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["name"] == ["state", "step", "loss", "goodput", "restarts", "age"]
    assert rows["quickstart"] == ["done", "1000/1000", "1.2500", "45.5", "%", "0", "3", "d"]
    assert rows["now"] == ["running", "50/1000", "2.5000", "54.3", "%", "1", "5", "min"]
    assert rows["pretrain-1a2b3c4d"] == ["interrupted", "0/1000", "-", "-", "0", "-"]


def test_long_name_is_folded_whole_and_no_figure_is_cut(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a-very-long-name-of-a-run-" * 4
    write_run(storage, name, [LAUNCH, BEGIN, {**SAVE, "step": 600_000}])
    lines = said_by(capsys, storage).splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(line.split()[0] for line in lines[1:] if line.strip()) == name
    assert "interrupted" in lines[1]
    assert "600000/1000" in lines[1]


def test_one_run_is_shown_with_times_faults_checkpoints_and_places(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(storage, "tiny", [LAUNCH, BEGIN, SAVE, FAULT, RESTART, AGAIN])
    write_lease(storage, folder)
    for step in (40, 50):
        write_checkpoint(storage, "tiny", step)
    storage.remove(f"{write_checkpoint(storage, 'tiny', 60)}/COMMITTED")
    storage.write_bytes(f"{write_checkpoint(storage, 'tiny', 70)}/manifest.json", b"{")
    said = said_by(capsys, storage, "show", "tiny")
    shown = " ".join(said.replace("│", " ").split())
    assert f"running (process {os.getpid()} on {socket.gethostname()})" in shown
    for part in (
        "steps 50/1000",
        "last loss 2.5000",
        "2 h ago",
        "goodput 54.3 % of 1 min 32 s",
        "in steps that count 50.0 s",
        "waiting for checkpoints 1.0 s",
        "restarts 1",
        "checkpoints after steps 40 50",
        "incomplete checkpoints 60 70",
        f"{FAULT['text']} 12.0 s",
        "model: none yet",
        "metrics: none yet",
        "W&B data: none on this machine",
    ):
        assert part in shown
    assert max(len(line) for line in said.splitlines()) <= 80


def test_preemptions_and_changes_of_size_are_shown_apart_from_failures(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {"kind": "fault", "time": 95, "text": "preempted: the node is about to go", "preempted": True}
    smaller, begun = {"kind": "resize", "time": 99, "from": 2, "to": 1}, {**AGAIN, "time": 100}
    larger = {"kind": "resize", "time": 105, "from": 1, "to": 2}
    failed = {**FAULT, "preempted": False}
    write_run(storage, "tiny", [LAUNCH, BEGIN, SAVE, failed, RESTART, AGAIN, taken, RESTART, smaller, begun, larger])
    shown = " ".join(said_by(capsys, storage, "show", "tiny").replace("│", " ").split())
    assert "restarts 2, 1 of them after preemptions workers 2, then 1, then 2" in shown


def test_model_metrics_and_w_and_b_data_are_shown_where_they_lie(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(storage, "tiny", [LAUNCH, BEGIN, SAVE, END], METRICS)
    artifact.commit(storage, f"{folder}/model", {}, {})
    write_json(storage, f"{folder}/run.json", {"wandb_run_id": "a", "where_to_look": ["W&B data (offline): there"]})
    assert said_by(capsys, storage, "show", "tiny").splitlines()[-3:] == [
        f"model: {storage.url(folder)}/model",
        f"metrics: {storage.url(folder)}/metrics.json",
        "W&B data (offline): there",
    ]


def test_w_and_b_data_of_a_running_run_is_found_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / write_run(storage, "tiny", [LAUNCH]) / "wandb").mkdir()
    assert f"W&B data: {tmp_path}/runs/tiny/wandb" in said_by(capsys, storage, "show", "tiny").splitlines()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("quickstrat", "did you mean quickstart?"),
        ("quickstart/model", "did you mean quickstart?"),
        ("zzz", "`orchestrator runs` lists all"),
        ("../runs/quickstart", "did you mean quickstart?"),
    ],
)
def test_misspelt_name_is_reported_with_the_nearest_one(
    storage: Storage, name: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(storage, f"{write_run(storage, 'quickstart')}/model/recipe.json", RECIPE)
    assert main(["runs", "show", name, f"storage.root={storage.url()}"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"error: name={name}: no such run in {storage.url('runs')}; {remedy}\n"


def test_root_without_runs_is_reported_and_not_an_error(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by(capsys, storage) == f"no runs in {storage.url('runs')}\n"


def test_missing_root_is_reported_and_not_created(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == f"no runs in {empty_folder}/outputs/runs\n"
    assert list(empty_folder.iterdir()) == []


def test_runs_imports_no_training_library(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_lease(storage, write_run(storage, "tiny", [LAUNCH, BEGIN, SAVE]))
    write_checkpoint(storage, "tiny", 50)
    script = f"""
import json, sys
from orchestrator.cli import main
for words in ([], ["show", "tiny"]):
    assert main(["runs", *words, "storage.root={tmp_path}"]) == 0
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
    command, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded & {"torch", "ray", "deepspeed", "wandb", "pytorch_lightning", "numpy", "transformers"} == set()


DAMAGE = [b"", b'{"half": ', b"[1, 2]", b"\xff\xfe"]


@pytest.mark.parametrize("damage", DAMAGE, ids=["empty", "half", "no object", "no text"])
@pytest.mark.parametrize("file", ["recipe.json", "metrics.json"])
def test_damaged_file_marks_its_run_and_hides_no_other(
    storage: Storage, file: str, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(storage, "good", [LAUNCH, BEGIN, SAVE, END], metrics={"progress/step": 100, "train/loss": 2.0})
    write_run(storage, "bad", [LAUNCH, BEGIN, SAVE, END], metrics={"progress/step": 100})
    storage.write_bytes(f"runs/bad/{file}", damage)
    assert main(["runs", f"storage.root={storage.url()}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "good done 100/100" in shown
    assert "bad damaged" in shown
    assert f"{storage.url(f'runs/bad/{file}')}: damaged (" in shown
    assert main(["runs", "show", "bad", f"storage.root={storage.url()}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {storage.url(f'runs/bad/{file}')}: damaged (")
    assert said.count("\n") == 1


@pytest.mark.parametrize("damage", [*DAMAGE, b'{"kind": "begin"}'])
def test_damaged_event_is_skipped_and_named(storage: Storage, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_run(storage, "a", [LAUNCH, BEGIN, SAVE])
    storage.write_bytes(f"{folder}/events/00000000000000009-begin-0000.json", damage)
    found = state_of(storage, "a")
    assert [event["kind"] for event in found.events] == ["launch", "begin", "checkpoint"]
    assert "00000000000000009-begin-0000.json" in caplog.text


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_identity_lets_the_run_continue_as_a_new_one_in_wandb(
    storage: Storage, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(storage, "a", [LAUNCH])
    storage.write_bytes("runs/a/run.json", damage)
    found = find_run(storage, "a")
    assert found is not None
    assert len(found.wandb_run_id) == 8
    assert "runs/a/run.json" in caplog.text


def test_a_listing_asks_as_much_for_an_old_run_as_for_a_young_one(tmp_path: Path) -> None:
    storage, asked = Storage(f"memory://{tmp_path.name}"), {}
    for attempts in (2, 8):
        live(storage, f"done_{attempts}", attempts)
        with store_requests() as requests:
            (state,) = read_runs(storage)
        assert (state.state, state.step, len(state.faults)) == ("done", 10 * attempts, attempts - 1)
        asked[attempts] = Counter(requests)
        storage.remove("runs")
    # its folder and that of its events; recipe, identity, metrics and events
    assert asked[2] == asked[8] == {"list": 3, "read_bytes": 4}
    live(storage, "lost", 8, is_done=False)
    with store_requests() as requests:
        (state,) = read_runs(storage)
    assert (state.state, state.step, len(state.faults)) == ("interrupted", 80, 7)
    assert len(requests) < 2 * MERGED_FILES + 10  # of 96 events
