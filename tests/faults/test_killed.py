"""Workers and drivers that are killed: the run has the samples and the weights of an unbroken one, bit for bit."""

import itertools
import random
import re
import signal
import time
from pathlib import Path

import pytest
from broken_run import (
    INTERRUPT,
    KILL,
    TERMINATE,
    BrokenRun,
    Finished,
    command,
    events,
    finished,
    goes_on_from_the_last_checkpoint,
)
from tiny_run import write_text
from waiting import eventually

TWO = "cluster.num_workers=2"
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def unbroken(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """An unbroken run with two workers by strategy, made when first asked for."""

    class Runs(dict[str, Finished]):
        def __missing__(self, strategy: str) -> Finished:
            root = tmp_path_factory.mktemp(strategy)
            with BrokenRun(command(text, root, f"strategy={strategy}", TWO)) as run:
                assert run.end() == 0, run.said
            self[strategy] = finished(root)
            return self[strategy]

    return Runs()


def killed_once(text: Path, root: Path, strategy: str, cluster: str, step: int, which: int) -> None:
    where = [f"strategy={strategy}", f"cluster={cluster}", TWO]
    with BrokenRun(command(text, root, *where)) as run:
        run.wait_for_step(step)
        run.signal_worker(KILL, which)
        assert run.end() == 0, run.said
    assert "restarting from the last checkpoint (restart 1 of 3)" in run.said
    (fault,) = events(root, "fault")
    assert ("was killed (SIGKILL)" if cluster == "local" else "is lost: its worker process has died") in fault["text"]
    assert len(events(root, "restart")) == 1
    assert goes_on_from_the_last_checkpoint(root)


def test_killed_local_worker_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    text: Path, tmp_path: Path, unbroken: dict[str, Finished]
) -> None:
    killed_once(text, tmp_path, "zero2", "local", step=25, which=1)
    assert finished(tmp_path) == unbroken["zero2"]


@pytest.mark.ray
def test_killed_worker_on_ray_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    text: Path, tmp_path: Path, unbroken: dict[str, Finished]
) -> None:
    killed_once(text, tmp_path, "zero2", "ray", step=25, which=1)
    assert finished(tmp_path) == unbroken["zero2"]


@pytest.mark.long
@pytest.mark.parametrize(("strategy", "cluster"), list(itertools.product(STRATEGIES, ("local", "ray"))))
def test_killed_worker_under_every_strategy_on_every_cluster(
    text: Path, tmp_path: Path, unbroken: dict[str, Finished], strategy: str, cluster: str
) -> None:
    killed_once(text, tmp_path, strategy, cluster, step=33, which=0)
    assert finished(tmp_path) == unbroken[strategy]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_killed_worker_at_a_random_step(text: Path, tmp_path: Path, unbroken: dict[str, Finished], seed: int) -> None:
    chance = random.Random(seed)
    with BrokenRun(command(text, tmp_path, "strategy=ddp", TWO)) as run:
        run.wait_for_step(chance.randrange(1, 58))
        run.signal_worker(KILL, chance.randrange(2))
        assert run.end() == 0, run.said
    assert finished(tmp_path) == unbroken["ddp"]


def test_a_run_whose_workers_are_killed_too_often_fails_with_the_last_fault(text: Path, tmp_path: Path) -> None:
    with BrokenRun(command(text, tmp_path, "strategy=ddp", TWO, "cluster.max_failures=0")) as run:
        run.wait_for_step(12)
        run.signal_worker(KILL, 0)
        assert run.end() == 1
    assert "error: worker rank" in run.said.splitlines()[-1]
    assert events(tmp_path, "restart") == []


def test_killed_driver_takes_its_workers_along_and_the_same_command_goes_on(
    text: Path, tmp_path: Path, unbroken: dict[str, Finished]
) -> None:
    same = command(text, tmp_path, "strategy=zero2", TWO)
    with BrokenRun(same) as run:
        run.wait_for_step(25)
        workers = run.workers()
        run.process.kill()
        assert eventually(lambda: not any(worker.is_running() for worker in workers))
    with BrokenRun(same) as run:
        assert run.end() == 0, run.said
    assert goes_on_from_the_last_checkpoint(tmp_path)
    assert finished(tmp_path) == unbroken["zero2"]


@pytest.mark.parametrize(
    ("cluster", "number", "code", "name"),
    [
        ("local", TERMINATE, 143, "SIGTERM"),
        pytest.param("local", INTERRUPT, 130, "SIGINT", marks=pytest.mark.long),
        pytest.param("ray", TERMINATE, 143, "SIGTERM", marks=[pytest.mark.ray, pytest.mark.long]),
        pytest.param("ray", INTERRUPT, 130, "SIGINT", marks=[pytest.mark.ray, pytest.mark.long]),
    ],
)
def test_notice_to_one_worker_stops_all_of_them_after_a_last_checkpoint(
    text: Path, tmp_path: Path, unbroken: dict[str, Finished], cluster: str, number: int, code: int, name: str
) -> None:
    same = command(text, tmp_path, "strategy=zero2", f"cluster={cluster}", TWO)
    with BrokenRun(same) as run:
        run.wait_for_step(15)
        run.signal_worker(number, 1)
        assert run.end() == code, run.said
    (stop,) = events(tmp_path, "stop")
    assert run.lines[-1] == (
        f"{name}: saved after step {stop['step']} and stopped; the same command continues from there"
    )
    # checkpoints are the same on all clusters
    with BrokenRun(command(text, tmp_path, "strategy=zero2", TWO)) as run:
        assert run.end() == 0, run.said
    assert events(tmp_path, "begin")[-1]["step"] == stop["step"]
    assert finished(tmp_path) == unbroken["zero2"]


@pytest.mark.parametrize(
    ("cluster", "workers"),
    [
        ("local", 1),
        pytest.param("local", 2, marks=pytest.mark.long),
        # in the short form a notice to all processes, which reaches the driver too, stands for it
        pytest.param("ray", 2, marks=[pytest.mark.ray, pytest.mark.long]),
    ],
)
def test_notice_to_the_driver_stops_the_run_after_a_last_checkpoint(
    text: Path, tmp_path: Path, cluster: str, workers: int
) -> None:
    where = [f"cluster={cluster}", f"cluster.num_workers={workers}", "strategy=ddp", "training.num_steps=100000"]
    same = command(text, tmp_path, *where, "objective=clm", "checkpoint.interval_steps=50000")
    with BrokenRun(same) as run:
        run.wait_for_step(12)
        run.process.send_signal(TERMINATE)
        assert run.end() == 143, run.said
    (stop,) = events(tmp_path, "stop")
    assert (tmp_path / f"runs/tiny/checkpoints/step_{stop['step']:08d}/COMMITTED").is_file()
    assert "Traceback" not in run.said


@pytest.mark.parametrize(
    ("cluster", "number"),
    [
        ("local", signal.SIGUSR1),
        pytest.param("local", signal.SIGHUP, marks=pytest.mark.long),
        pytest.param("local", TERMINATE, marks=pytest.mark.long),
        pytest.param("ray", TERMINATE, marks=pytest.mark.ray),
        pytest.param("ray", signal.SIGUSR1, marks=[pytest.mark.ray, pytest.mark.long]),
    ],
)
def test_notice_to_all_processes_at_once_stops_the_run_after_a_last_checkpoint(
    text: Path, tmp_path: Path, cluster: str, number: int
) -> None:
    where = [f"cluster={cluster}", "strategy=ddp", TWO, "training.num_steps=100000"]
    with BrokenRun(command(text, tmp_path, *where)) as run:
        run.wait_for_step(12)
        run.signal_all(number)
        assert run.end() == 143, run.said
    (stop,) = events(tmp_path, "stop")
    assert run.lines[-1].startswith(f"{signal.Signals(number).name}: saved after step {stop['step']} and stopped")
    assert events(tmp_path, "fault") == []
    assert "Traceback" not in run.said


@pytest.mark.long
def test_run_under_nohup_outlives_its_terminal(text: Path, tmp_path: Path, unbroken: dict[str, Finished]) -> None:
    with BrokenRun(command(text, tmp_path, "strategy=zero2", TWO), nohup=True) as run:
        run.wait_for_step(12)
        run.signal_all(signal.SIGHUP)
        assert run.end() == 0, run.said
    assert events(tmp_path, "fault") == events(tmp_path, "stop") == []
    assert finished(tmp_path) == unbroken["zero2"]


@pytest.mark.long
def test_notice_beside_a_killed_worker_ends_the_run_and_restarts_nothing(text: Path, tmp_path: Path) -> None:
    with BrokenRun(command(text, tmp_path, "strategy=ddp", TWO)) as run:
        run.wait_for_step(12)
        # so that both are on their way before anybody acts on one
        run.process.send_signal(signal.SIGSTOP)
        run.signal_worker(KILL, 1)
        run.process.send_signal(TERMINATE)
        run.process.send_signal(signal.SIGCONT)
        assert run.end() == 143, run.said
    assert events(tmp_path, "restart") == []
    assert "Traceback" not in run.said


@pytest.mark.parametrize(
    ("cluster", "which"),
    [
        ("local", 0),
        pytest.param("local", 1, marks=pytest.mark.long),
        pytest.param("ray", 0, marks=[pytest.mark.ray, pytest.mark.long]),
        pytest.param("ray", 1, marks=[pytest.mark.ray, pytest.mark.long]),
    ],
)
def test_stopped_worker_is_found_and_the_run_goes_on(
    text: Path, tmp_path: Path, unbroken: dict[str, Finished], cluster: str, which: int
) -> None:
    where = ["strategy=zero2", f"cluster={cluster}", TWO, "cluster.hang_timeout_seconds=4"]
    with BrokenRun(command(text, tmp_path, *where)) as run:
        run.wait_for_step(25)
        sorted(run.workers(), key=lambda worker: worker.pid)[which].suspend()
        assert run.end() == 0, run.said
    (fault,) = events(tmp_path, "fault")
    assert re.match(r"worker rank [01] on [^ :]+: no step for 4 s; its stacks are in", fault["text"])
    stacks = list((tmp_path / "runs/tiny/stacks").iterdir())
    assert {path.name.rpartition("-")[2] for path in stacks} == {"rank_00000.txt", "rank_00001.txt"}
    assert all("Thread" in path.read_text() and "File" in path.read_text() for path in stacks)
    assert finished(tmp_path) == unbroken["zero2"]


def test_second_interrupt_ends_workers_that_cannot_save(text: Path, tmp_path: Path) -> None:
    with BrokenRun(command(text, tmp_path, "strategy=ddp", TWO)) as run:
        run.wait_for_step(12)
        workers = run.workers()
        for worker in workers:
            worker.suspend()
        for _ in range(2):
            run.process.send_signal(INTERRUPT)
            time.sleep(0.5)
        assert run.end() == 130
    assert run.lines[-1] == "error: interrupted"
    assert eventually(lambda: not any(worker.is_running() for worker in workers))


def test_workers_that_do_not_save_within_their_grace_are_ended(text: Path, tmp_path: Path) -> None:
    with BrokenRun(command(text, tmp_path, "strategy=ddp", TWO, "checkpoint.grace_seconds=1")) as run:
        run.wait_for_step(12)
        run.workers()[0].suspend()
        run.process.send_signal(TERMINATE)
        assert run.end() == 143
    assert "Traceback" not in run.said


def test_second_driver_is_refused_while_the_first_runs(text: Path, tmp_path: Path) -> None:
    same = command(text, tmp_path, "training.num_steps=100000", "objective=clm")
    with BrokenRun(same) as first:
        first.wait_for_step(2)
        with BrokenRun(same) as second:
            assert second.end() == 2
        assert f"another driver runs this run: process {first.process.pid} on " in second.lines[-1]
        first.process.send_signal(TERMINATE)
        assert first.end() == 143
