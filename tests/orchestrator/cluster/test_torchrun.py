"""cluster=torchrun: real processes, started by torchrun or by hand as srun does, and the run of cluster=local."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from broken_run import RECORDING, TIMEOUT_SECONDS, BrokenRun, Finished, command, events, finished
from tiny_run import write_text
from waiting import eventually

from orchestrator.cli import main
from orchestrator.cluster.placed_worker import VARIABLES

PLACE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of a process that torchrun has started; a test may change them."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return dict(PLACE)


def refusal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: dict[str, str], *settings: str
) -> str:
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain", "cluster=torchrun", "tracking.mode=disabled", *settings]) == 2
    assert list(Path().iterdir()) == []
    return capsys.readouterr().err


def test_missing_variables_are_named_with_the_way_to_start(
    capsys: Any, monkeypatch: Any, place: dict[str, str], empty_folder: Path
) -> None:
    del place["RANK"], place["MASTER_ADDR"]
    said = refusal(capsys, monkeypatch, place)
    assert "cluster=torchrun: RANK, MASTER_ADDR are not set" in said
    assert "torchrun --nproc-per-node 8 -m orchestrator" in said


@pytest.mark.parametrize(
    ("changed", "settings", "rule"),
    [
        ({"WORLD_SIZE": "2"}, ["cluster.num_workers=4"], "cluster.num_workers=4: torchrun has started WORLD_SIZE=2"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, [], "RANK=3 must be below WORLD_SIZE=2"),
        ({"MASTER_PORT": "http"}, [], "MASTER_PORT='http' must be a whole number"),
        ({"WORLD_SIZE": "many"}, [], "cluster.num_workers"),
        ({}, ["cluster.num_workers=[1,2]"], "cluster=torchrun takes one number"),
        ({}, ["cluster.gpus_per_worker=1"], "need 1 GPUs, and this one sees 0"),
    ],
)
def test_places_that_contradict_the_configuration_are_refused(
    capsys: Any,
    monkeypatch: Any,
    place: dict[str, str],
    empty_folder: Path,
    changed: dict[str, str],
    settings: list[str],
    rule: str,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert rule in refusal(capsys, monkeypatch, place | changed, "strategy=ddp", *settings)


def test_worker_that_does_not_see_its_gpu_is_refused_and_does_not_compute_on_the_cpu(
    capsys: Any, monkeypatch: Any, place: dict[str, str], empty_folder: Path
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    said = refusal(capsys, monkeypatch, place | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "strategy=ddp")
    assert "need 2 GPUs, and this one sees 1; show every process all GPUs of its node" in said


@pytest.fixture(scope="module")
def of_local(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("local")
    with BrokenRun(command(text, root, "strategy=ddp", "cluster.num_workers=2")) as run:
        assert run.end() == 0, run.said
    return finished(root)


class Torchrun(BrokenRun):
    """A run under torchrun, whose workers are its children."""

    program = ["torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "orchestrator"]

    def workers(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children()
        return [child for child in found if "cluster=torchrun" in child.cmdline()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_worker_is_restarted_by_torchrun_and_the_weights_are_those_of_local_workers(
    text: Path, tmp_path: Path, of_local: Finished
) -> None:
    with Torchrun(command(text, tmp_path, "strategy=ddp", "cluster=torchrun")) as run:
        run.wait_for_step(25)
        assert eventually((tmp_path / "runs/tiny/checkpoints/step_00000020/COMMITTED").exists, seconds=TIMEOUT_SECONDS)
        assert len(run.workers()) == 2
        run.signal_worker(signal.SIGKILL, 0)
        assert run.end() == 0, run.said
    first, again = events(tmp_path, "begin")
    assert (first["world_size"], first["step"]) == (2, 0)
    assert again["step"] >= 20
    assert finished(tmp_path) == of_local


@pytest.mark.long
@pytest.mark.timeout(900)
def test_failure_is_told_with_rank_and_node_and_torchrun_repeats_it(text: Path, tmp_path: Path) -> None:
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/checkpoints").touch()
    with Torchrun(command(text, tmp_path, "strategy=ddp", "cluster=torchrun", "training.num_steps=10")) as run:
        assert run.end() == 1
    assert re.search(r"error: worker rank \d on \S+: .*checkpoint not saved: worker 0: ", run.said)
    assert re.search(r"checkpoint not saved: worker 0: ", run.said.partition("Root Cause")[2])


def by_hand(arguments: list[str], rank: int, port: int) -> "subprocess.Popen[str]":
    """Start one process as srun does: no agent holds the store where the processes meet."""
    place = PLACE | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    path = os.pathsep.join(filter(None, [RECORDING, os.environ.get("PYTHONPATH")]))
    place |= {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    process = [sys.executable, "-m", "orchestrator", *arguments]
    return subprocess.Popen(
        process, env=os.environ | place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def started_by_hand(arguments: list[str], stack: ExitStack) -> list["subprocess.Popen[str]"]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [by_hand(arguments, rank, port) for rank in range(2)]
    for process in processes:
        stack.callback(process.communicate)
        stack.callback(process.kill)
    return processes


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.long
def test_notice_to_all_processes_saves_and_the_same_command_continues(
    text: Path, tmp_path: Path, of_local: Finished
) -> None:
    same = command(text, tmp_path, "strategy=ddp", "cluster=torchrun")
    with ExitStack() as stack:
        first, second = started_by_hand(same, stack)
        assert first.stdout is not None
        assert any(re.match(r"step +1[5-9]/", line) for line in iter(first.stdout.readline, ""))
        for process in (second, first):
            process.send_signal(signal.SIGTERM)
        said, silent = first.communicate(timeout=TIMEOUT_SECONDS)[0], second.communicate(timeout=TIMEOUT_SECONDS)[0]
        assert (first.returncode, second.returncode) == (143, 143), said + silent
    (stop,) = events(tmp_path, "stop")
    assert f"SIGTERM: saved after step {stop['step']} and stopped; the same command continues from there" in said
    assert silent == ""
    with ExitStack() as stack:
        again = started_by_hand(same, stack)
        outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in again]
        assert [process.returncode for process in again] == [0, 0], outputs
    assert events(tmp_path, "begin")[-1]["step"] == stop["step"]
    assert finished(tmp_path) == of_local


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mistake_in_the_data_ends_all_processes_with_one_message(tmp_path: Path) -> None:
    with ExitStack() as stack:
        processes = started_by_hand(command(tmp_path / "none.txt", tmp_path, "strategy=ddp", "cluster=torchrun"), stack)
        outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "none.txt" in outputs[0]
    assert outputs[1] == ""
