"""Nodes of a Ray cluster that are lost, taken away and added: the run goes on, and its curve stays the same."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from broken_run import KILL, TERMINATE, BrokenRun, command, events, finished, losses, samples_of_steps
from ray_nodes import RayNodes, ray_nodes
from tiny_run import write_text
from waiting import eventually

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
ENDLESS = ["training.num_steps=100000", "training.val_interval_steps=100000", "checkpoint.keep_last=3"]
"""Stopped when all has happened that shall, however fast the machine is."""
FINITE = ["training.num_steps=400", "training.val_interval_steps=400"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(2) as nodes:
        yield nodes


def on(nodes: RayNodes, workers: str, *others: str) -> list[str]:
    where = ["cluster=ray", f"cluster.address={nodes.address}", f"cluster.num_workers={workers}"]
    return [*where, "cluster.resize_interval_seconds=1", *others]


def grows_again(run: BrokenRun, nodes: RayNodes) -> None:
    """Wait until the run goes on with one worker, and give it another node; stop it when it has two again."""
    run.wait_for("the run continues with 1 worker instead of 2")
    nodes.add()
    run.wait_for("the run continues with 2 workers instead of 1")
    begun = run.wait_for("continues from the checkpoint after step")
    run.wait_for_step(int(begun.split()[-1].replace(",", "")) + 20)
    run.process.send_signal(TERMINATE)
    assert run.end() == 143, run.said


def curve_is_that_of_an_unbroken_run(text: Path, root: Path, unbroken_root: Path, *others: str) -> bool:
    (stop,) = events(root, "stop")
    with BrokenRun(command(text, unbroken_root, "strategy=single", *others)) as run:
        run.wait_for_step(stop["step"])
        run.process.send_signal(TERMINATE)
        assert run.end() == 143, run.said
    assert samples_until(stop["step"], root) == samples_until(stop["step"], unbroken_root)
    ours, theirs = losses(root), losses(unbroken_root)
    both = sorted(set(ours) & set(theirs))
    # where a node is lost, the event of the newest checkpoint may not have been written yet
    assert len(both) >= stop["step"] // 10 - len(events(root, "fault"))
    return [ours[step] for step in both] == pytest.approx([theirs[step] for step in both], rel=1e-5, abs=0)


def samples_until(last: int, root: Path) -> list[list[int]]:
    """Return the samples of each step in order, none of which is missing."""
    steps = samples_of_steps(root)
    return [steps[step] for step in range(1, last + 1)]


def steps_lost(run: BrokenRun) -> list[int]:
    """Return for each continuation how many finished steps it repeats, by the lines that the run has told."""
    lost, done = [], 0
    for line in run.lines:
        if step := re.match(r"step +([\d,]+)/", line):
            done = int(step[1].replace(",", ""))
        if line.startswith("continues from the checkpoint after step"):
            lost.append(done - int(line.split()[-1].replace(",", "")))
    return lost


def sizes(root: Path) -> list[int]:
    return [event["world_size"] for event in events(root, "begin")]


def test_elastic_run_shrinks_with_a_removed_node_and_grows_with_an_added_one(
    text: Path, tmp_path: Path, nodes: RayNodes
) -> None:
    where = on(nodes, "[1,2]", "strategy=ddp", *ENDLESS)
    with BrokenRun(command(text, tmp_path / "broken", *where)) as run:
        run.wait_for_step(25)
        nodes.remove(nodes.nodes[1])
        grows_again(run, nodes)
    root = tmp_path / "broken"
    assert sizes(root) == [2, 1, 2]
    assert [(event["from"], event["to"]) for event in events(root, "resize")] == [(2, 1), (1, 2)]
    assert len(events(root, "fault")) == 1  # the removal; the growth is none
    assert steps_lost(run)[-1] == 0  # it saved before it grew
    assert curve_is_that_of_an_unbroken_run(text, root, tmp_path / "unbroken", *ENDLESS)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("which", [0, 1])
def test_run_survives_the_loss_of_a_node(
    text: Path, tmp_path: Path, nodes: RayNodes, strategy: str, which: int
) -> None:
    where = on(nodes, "[1,2]", f"strategy={strategy}", *ENDLESS)
    with BrokenRun(command(text, tmp_path / "broken", *where)) as run:
        run.wait_for_step(25)
        nodes.lose(nodes.nodes[which])
        grows_again(run, nodes)
    assert sizes(tmp_path / "broken") == [2, 1, 2]
    assert not any(event["preempted"] for event in events(tmp_path / "broken", "fault"))
    assert curve_is_that_of_an_unbroken_run(text, tmp_path / "broken", tmp_path / "unbroken", *ENDLESS)


@pytest.mark.long
@pytest.mark.parametrize("which", [0, 1])
def test_run_survives_a_killed_raylet(text: Path, tmp_path: Path, nodes: RayNodes, which: int) -> None:
    with BrokenRun(command(text, tmp_path / "broken", *on(nodes, "[1,2]", "strategy=ddp", *ENDLESS))) as run:
        run.wait_for_step(25)
        nodes.kill_raylet(nodes.nodes[which])
        grows_again(run, nodes)
    assert sizes(tmp_path / "broken") == [2, 1, 2]
    assert curve_is_that_of_an_unbroken_run(text, tmp_path / "broken", tmp_path / "unbroken", *ENDLESS)


@pytest.mark.long
def test_notice_of_preemption_costs_no_step_and_no_failure(text: Path, tmp_path: Path, nodes: RayNodes) -> None:
    where = on(nodes, "[1,2]", "strategy=ddp", "cluster.max_failures=0", *ENDLESS)
    with BrokenRun(command(text, tmp_path / "broken", *where)) as run:
        run.wait_for_step(25)
        nodes.drain(nodes.nodes[1], seconds=300)
        grows_again(run, nodes)
    root = tmp_path / "broken"
    (fault,) = events(root, "fault")
    assert fault["preempted"]
    assert fault["text"] in run.said
    assert steps_lost(run) == [0, 0]
    assert curve_is_that_of_an_unbroken_run(text, root, tmp_path / "unbroken", *ENDLESS)


@pytest.mark.long
def test_run_of_fixed_size_waits_for_a_node_in_place_of_a_preempted_one(
    text: Path, tmp_path: Path, nodes: RayNodes
) -> None:
    with BrokenRun(command(text, tmp_path / "unbroken", "strategy=ddp", "cluster.num_workers=2", *FINITE)) as run:
        assert run.end() == 0, run.said
    with BrokenRun(command(text, tmp_path / "broken", *on(nodes, "2", "strategy=ddp", *FINITE))) as run:
        run.wait_for_step(25)
        nodes.drain(nodes.nodes[0], seconds=300)
        run.wait_for("restarting from the last checkpoint .preemption 1.")
        nodes.add()
        assert run.end() == 0, run.said
    assert sizes(tmp_path / "broken") == [2, 2]
    assert finished(tmp_path / "broken") == finished(tmp_path / "unbroken")


@pytest.mark.long
def test_preemptions_beyond_their_limit_fail_the_run(text: Path, tmp_path: Path, nodes: RayNodes) -> None:
    with BrokenRun(
        command(text, tmp_path, *on(nodes, "[1,2]", "cluster.max_preemptions=0", "strategy=ddp", *ENDLESS))
    ) as run:
        run.wait_for_step(25)
        nodes.drain(nodes.nodes[1], seconds=300)
        assert run.end() == 1, run.said
    assert re.fullmatch(r"error: preempted: the node of worker rank [01] will be taken away", run.lines[-1])


@pytest.mark.long
@pytest.mark.parametrize("embedded", [False, True])
def test_killed_driver_takes_the_workers_of_its_job_along_and_the_same_command_goes_on(
    text: Path, tmp_path: Path, nodes: RayNodes, embedded: bool
) -> None:
    where = ["cluster=ray", "cluster.num_workers=2"] if embedded else on(nodes, "2")
    same = command(text, tmp_path, "strategy=ddp", *where, *FINITE)
    with BrokenRun(same) as run:
        run.wait_for_step(25)
        workers = run.workers() if embedded else [worker for node in nodes.nodes for worker in nodes.workers(node)]
        assert len(workers) == 2
        run.process.send_signal(KILL)
        assert eventually(lambda: not any(worker.is_running() for worker in workers))
    with BrokenRun(same) as run:
        assert run.end() == 0, run.said
    first, again = events(tmp_path, "begin")
    assert first["step"] == 0 < again["step"]
