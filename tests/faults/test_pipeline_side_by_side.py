"""Two pipelines at once: what they share is done once, a dead driver's stage is taken over, no CPU is given twice."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken_pipeline import PIPELINE_SECONDS, Stored, processes_of
from broken_run import KILL, BrokenRun
from ray_nodes import RayNodes, ray_nodes
from tiny_run import TINY, write_text
from waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(7200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
NUM_NODES = 2


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def nodes(request: pytest.FixtureRequest) -> Iterator[RayNodes | None]:
    if request.param == "local":
        yield None
        return
    with ray_nodes(NUM_NODES) as nodes:
        yield nodes


@pytest.fixture
def start(tmp_path: Path, nodes: RayNodes | None) -> Callable[[str], BrokenRun]:
    """Return what starts one of two pipelines with the same base, each with two stages of its own."""
    words = [*TINY, f"data.path={write_text(tmp_path / 'text.txt')}", "tracking=disabled"]
    small = [word for word in words if not word.startswith(("model", "tokenizer", "objective"))]
    (tmp_path / "conf/pipeline").mkdir(parents=True)
    for name in ("first", "second"):
        own = {
            f"{name}{number}": {
                "command": "pretrain",
                "overrides": [*small, "training.num_steps=10", f"run.seed={number}{len(name)}"],
                "inputs": {"model.path": "base"},
            }
            for number in (1, 2)
        }
        base = {"command": "pretrain", "overrides": [*words, "training.num_steps=200"]}
        content = yaml.safe_dump({"name": name, "stages": {"base": base, **own}}, sort_keys=False)
        (tmp_path / f"conf/pipeline/{name}.yaml").write_text(f"# @package pipeline\n# Three stages.\n{content}")
    where = ["cluster=ray", f"cluster.address={nodes.address}"] if nodes else ["cluster=local"]
    same = ["run", "--config-dir", str(tmp_path / "conf"), *where, f"storage.root={tmp_path / 'out'}"]
    return lambda name: BrokenRun([*same, f"+pipeline={name}"])


def starts(root: Path) -> dict[str, int]:
    """Return how often each child was started, whichever pipeline has started it."""
    found = [Stored(root, name).starts() for name in ("first", "second")]
    return {name: sum(one.get(name, 0) for one in found) for one in found for name in one}


def most_reserved(nodes: RayNodes, runs: list[BrokenRun]) -> float:
    """Wait for the drivers, and return the most CPUs that were reserved, or that workers have used, at a time."""
    import ray

    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR", namespace="gpt-orchestrator")
    try:
        most, admission = 0.0, _admission()
        while any(run.process.poll() is None for run in runs):
            num_workers = sum(len(nodes.workers(node)) for node in nodes.nodes)
            most = max(most, NUM_NODES - ray.get(admission.left.remote())[0], float(num_workers))
            time.sleep(0.05)
        return most
    finally:
        ray.shutdown()  # a node that is connected could not be removed


def _admission() -> Any:
    """Return the actor by which drivers share the cluster, as soon as the first one has made it."""
    import ray

    found: list[Any] = []

    def is_there() -> bool:
        with suppress(ValueError):
            found.append(ray.get_actor("admission"))
        return bool(found)

    assert eventually(is_there, seconds=PIPELINE_SECONDS)
    return found[0]


def test_two_pipelines_run_what_they_share_once_and_never_take_more_than_there_is(
    start: Callable[[str], BrokenRun], tmp_path: Path, nodes: RayNodes | None
) -> None:
    with start("first") as first, start("second") as second:
        most = most_reserved(nodes, [first, second]) if nodes else NUM_NODES
        assert (first.end(PIPELINE_SECONDS), second.end(PIPELINE_SECONDS)) == (0, 0), f"{first.said}\n{second.said}"
    print(first.said, second.said, starts(tmp_path / "out"), most, sep="\n")
    assert starts(tmp_path / "out") == dict.fromkeys(["base", "first1", "first2", "second1", "second2"], 1)
    assert sum("waits for process" in run.said for run in (first, second)) == 1
    assert most == NUM_NODES, "all CPUs, and no more"


def test_the_same_pipeline_started_twice_runs_each_stage_once(
    start: Callable[[str], BrokenRun], tmp_path: Path
) -> None:
    with start("first") as first, start("first") as second:
        assert (first.end(PIPELINE_SECONDS), second.end(PIPELINE_SECONDS)) == (0, 0), f"{first.said}\n{second.said}"
    assert starts(tmp_path / "out") == {"base": 1, "first1": 1, "first2": 1}


def test_a_stage_whose_driver_is_killed_is_taken_over_by_the_pipeline_that_waits_for_it(
    start: Callable[[str], BrokenRun], tmp_path: Path
) -> None:
    with start("first") as first:
        assert eventually(lambda: list(tmp_path.glob("out/runs/first/base-*/log.txt")), seconds=PIPELINE_SECONDS)
        with start("second") as second:
            second.wait_for("waits for process")
            first.process.send_signal(KILL)
            killed = time.time()
            assert second.end(PIPELINE_SECONDS) == 0, second.said
    (record,) = (one for name, one in Stored(tmp_path / "out").done().items() if name == "base")
    print(second.said, record["seconds"], record["time"] - killed, sep="\n")
    assert record["attempt"] == 2
    assert starts(tmp_path / "out") == {"base": 2, "second1": 1, "second2": 1}
    assert eventually(lambda: not processes_of(str(tmp_path / "out")), seconds=60)
