"""A driver that another one has replaced, because it was stopped or its lease was removed, commits nothing more."""

import json
import shutil
import time
from pathlib import Path

import psutil
import pytest
from broken_run import BrokenRun, command, finished
from ray_nodes import ray_nodes
from tiny_run import write_text

from orchestrator.checkpoints.names import committed_steps
from orchestrator.storage.store import Storage

TWO = ["strategy=ddp", "cluster.num_workers=2"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def expected(text: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the same run without a disturbance."""
    root = tmp_path_factory.mktemp("unbroken")
    with BrokenRun(command(text, root, *TWO)) as run:
        assert run.end() == 0, run.said
    return finished(root).weights


def all_of(run: BrokenRun) -> list[psutil.Process]:
    driver = psutil.Process(run.process.pid)
    return [driver, *driver.children(recursive=True)]


def expire_as_if_from_elsewhere(root: Path) -> None:
    """Make the run's lease that of a driver that cannot be seen and has not renewed it for long."""
    (lease,) = (root / "runs/tiny/lease").glob("*.json")
    content = json.loads(lease.read_text())
    lease.write_text(json.dumps({**content, "namespace": "pid:[1]", "renewed": time.time() - 75}))


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [2, 1])
def test_driver_that_was_stopped_and_replaced_ends_and_commits_nothing(
    text: Path, tmp_path: Path, expected: bytes, num_workers: int
) -> None:
    same = command(text, tmp_path, "strategy=ddp", f"cluster.num_workers={num_workers}")
    with BrokenRun(same) as first:
        first.wait_for_step(12)
        stopped = all_of(first)
        for process in stopped:
            process.suspend()
        expire_as_if_from_elsewhere(tmp_path)
        with BrokenRun(same) as second:
            second.wait_for_step(22)
            saved = committed_steps(Storage(str(tmp_path)), "tiny")
            for process in stopped:
                process.resume()
            assert second.end() == 0, second.said
        assert first.end() == 1, first.said
    assert "another driver has taken over" in first.said
    assert saved
    assert attempts_of_checkpoints(tmp_path) == 1
    if num_workers == 2:
        assert finished(tmp_path).weights == expected


def attempts_of_checkpoints(root: Path) -> int:
    """Return how many attempts have written the files that the run's last checkpoint lists."""
    newest = max((root / "runs/tiny/checkpoints").iterdir())
    files = json.loads((newest / "manifest.json").read_text())["files"]
    return len({name.split("-")[1] for name in files if name.startswith("rank_")})


@pytest.mark.long
def test_driver_whose_lease_was_removed_and_taken_ends(text: Path, tmp_path: Path, expected: bytes) -> None:
    same = command(text, tmp_path, *TWO, "cluster.max_failures=0")
    with BrokenRun(same) as first:
        first.wait_for_step(12)
        for process in all_of(first):
            process.suspend()
        shutil.rmtree(tmp_path / "runs/tiny/lease")
        with BrokenRun(same) as second:
            second.wait_for_step(12)
            for process in all_of(first):
                process.resume()
            codes = second.end(), first.end()
    assert codes == (0, 1), first.said
    assert finished(tmp_path).weights == expected


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_workers_on_an_existing_cluster_end_when_another_driver_has_taken_over(
    text: Path, tmp_path: Path, expected: bytes
) -> None:
    with ray_nodes(2) as nodes:
        where = ["cluster=ray", f"cluster.address={nodes.address}", "cluster.num_workers=2", "strategy=ddp"]
        with BrokenRun(command(text, tmp_path, *where, "cluster.max_failures=1")) as first:
            first.wait_for_step(12)
            driver, workers = psutil.Process(first.process.pid), [nodes.workers(node)[0] for node in nodes.nodes]
            for process in [driver, *workers]:
                process.suspend()
            expire_as_if_from_elsewhere(tmp_path)
            with BrokenRun(command(text, tmp_path, *where)) as second:
                second.wait_for("starting 2 workers")
                for worker in workers:
                    worker.resume()
                assert second.end() == 0, second.said
            driver.resume()
            assert first.end() == 1, first.said
    assert "another driver has taken over" in first.said
    assert finished(tmp_path).weights == expected
