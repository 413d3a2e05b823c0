"""The driver runs what is not done, side by side as far as there is room, each stage under a lease."""

import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipelines import FakeChild, PlainComposer, SmallPipeline

from orchestrator.checkpoints.attempt import STAGES, lease_name
from orchestrator.commands.report import read_graph
from orchestrator.configuration.report import ReportConfig
from orchestrator.errors import HardwareError, LostNodeError, StageError
from orchestrator.pipeline import children
from orchestrator.pipeline.admission import Ledger, Resources, check_fits
from orchestrator.pipeline.progress import Progress
from orchestrator.report.stage_graph import stage_graph
from orchestrator.runs import lease as lease_module
from orchestrator.runs.lease import lease


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallPipeline:
    monkeypatch.setattr(children, "POLL_SECONDS", 0.02)
    return SmallPipeline(tmp_path)


def waited_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_each_stage_runs_once_after_those_that_it_needs_and_never_again(small: SmallPipeline) -> None:
    started = small.run()
    assert sorted(started) == ["base", "both", "left", "right"]
    assert (started[0], started[-1]) == ("base", "both")
    assert small.run() == []


def test_a_report_stage_is_given_the_graph_of_its_pipeline(small: SmallPipeline) -> None:
    stages = {
        "base": {"command": "pretrain", "overrides": ["data.source=files", f"data.path={small.folder}/base.txt"]},
        "page": {"command": "report", "inputs": {"stages": ["base"]}},
    }
    small.run(pipeline={"name": "small", "stages": stages})
    small.run(pipeline={"name": "small", "stages": stages}, force=["page"])
    order = small.children.orders[-1]
    config = PlainComposer().compose("report", order.words[1:])
    assert isinstance(config, ReportConfig)
    assert config.title == "small", "the page has the name of its pipeline"
    graph = stage_graph(read_graph(config.graph))
    assert [(box.name, box.command, box.state, bool(box.time)) for box in graph.boxes] == [
        ("base", "pretrain", "done", True),
        ("page", "report", "running", False),
    ]
    assert len(graph.paths) == 1


def test_stages_run_side_by_side_as_far_as_there_are_cores(small: SmallPipeline) -> None:
    together = threading.Barrier(2, timeout=60)

    def meet(child: FakeChild) -> None:
        together.wait()

    small.children.before = {"left": meet, "right": meet}
    small.run(cpus=2.0)
    assert small.children.most_at_once == 2
    alone = SmallPipeline(small.folder, name="alone")
    alone.seeds = {name: seed + 10 for name, seed in alone.seeds.items()}
    alone.run(cpus=1.0)
    assert alone.children.most_at_once == 1


def test_a_stage_has_its_share_of_the_cores_as_threads(small: SmallPipeline) -> None:
    small.run(cpus=8.0)
    threads = {order.path.split("/")[-1].split("-")[0]: order.num_threads for order in small.children.orders}
    assert threads["both"] == 8, "it runs alone"
    assert threads["right"] <= 4


def test_an_input_is_the_place_of_the_result(small: SmallPipeline) -> None:
    small.run()
    words = next(order.words for order in small.children.orders if order.words[0] == "evaluate")
    assert f"model.path={small.path('left') / 'model'}" in words
    assert f"to={small.path('both')}" in words
    assert f"storage.root={small.folder / 'out'}" in words


def test_a_failed_stage_stops_only_what_depends_on_it(small: SmallPipeline) -> None:
    small.children.before = {"left": lambda child: 1}
    with pytest.raises(StageError, match=r"(?s)stage left failed: .*log: .*left-\w+/log\.txt"):
        small.run(keep_going=True)
    assert sorted(small.children.started) == ["base", "left", "right"]
    small.children.before = {}
    assert small.run() == ["left", "both"]


def test_without_keep_going_nothing_new_starts_after_a_failure(small: SmallPipeline) -> None:
    small.children.before = {"left": lambda child: 1}
    with pytest.raises(StageError):
        small.run(cpus=1.0)
    assert small.children.started == ["base", "left"]


def test_a_child_that_ends_well_without_its_result_has_failed(small: SmallPipeline) -> None:
    small.children.before = {"base": lambda child: 0}
    with pytest.raises(StageError, match="stage base failed: .*model: not committed"):
        small.run()
    assert small.plan()["base"] == ("run", ("was begun and not finished",))


def test_the_work_of_a_driver_grows_with_the_number_of_stages_and_no_faster(small: SmallPipeline) -> None:
    def lookups(number: int) -> int:
        """Return how often the phase of a stage is read in a pipeline of so many, one after the other."""
        overrides = ["data.source=files", f"data.path={small.folder}/base.txt"]
        stages: dict[str, Any] = {"s0": {"command": "pretrain", "overrides": [*overrides, f"run.seed={number}"]}}
        for index in range(1, number):
            seed = [f"seed={number}{index:03}"]
            stages[f"s{index}"] = {"command": "evaluate", "overrides": seed, "inputs": {"model.path": "s0"}}
        driver, counted = small.driver(pipeline={"name": "small", "stages": stages}), CountedLookups()
        counted.update(driver.progress)
        driver.progress = counted
        driver._next_show = math.inf
        driver.run((), False)
        return counted.number

    few, many = lookups(10), lookups(40)
    assert many / few < 5, "of four times as many stages"


class CountedLookups(dict[str, Progress]):
    """Counts how often one is looked up."""

    number = 0

    def __getitem__(self, name: str) -> Progress:
        self.number += 1
        return super().__getitem__(name)

    def items(self) -> Any:
        self.number += len(self)
        return super().items()


def test_only_runs_a_stage_with_what_it_needs(small: SmallPipeline) -> None:
    assert small.run(only="right") == ["base", "right"]


def test_a_forced_stage_runs_again_in_a_folder_of_its_own_and_the_same_result_changes_nothing_else(
    small: SmallPipeline,
) -> None:
    small.run()
    assert small.run(force="base") == ["base"]
    folders = sorted(path.name for path in (small.folder / "out/runs/small").glob("base-*"))
    assert len(folders) == 2
    assert folders[1] == f"{folders[0]}-2"


def test_another_result_of_a_forced_stage_makes_what_reads_it_run_again(small: SmallPipeline) -> None:
    small.run()
    small.children.content = {"base": "other weights"}
    assert sorted(small.run(force="base")) == ["base", "left", "right"], "`both` reads the same result of `left`"


def test_an_interrupted_forced_stage_goes_on_where_it_was(small: SmallPipeline) -> None:
    small.run()
    small.children.before = {"right": lambda child: 1}
    for _ in range(2):
        with pytest.raises(StageError):
            small.run(force="right")
    assert len(list((small.folder / "out/runs/small").glob("right-*"))) == 2


def test_two_pipelines_that_share_a_stage_run_it_once_and_one_waits_for_the_other(small: SmallPipeline) -> None:
    other = SmallPipeline(small.folder, name="other")
    held, go_on = threading.Event(), threading.Event()

    def hold(child: FakeChild) -> None:
        held.set()
        assert go_on.wait(60)

    small.children.before = {"base": hold}
    first = threading.Thread(target=small.run)
    first.start()
    assert held.wait(60)
    waiting = other.driver()
    second = threading.Thread(target=waiting.run, args=((), False))
    second.start()
    assert waited_for(lambda: waiting.progress["base"].why.startswith("waits for process "))
    go_on.set()
    first.join(60)
    second.join(60)
    started = [*small.children.started, *other.children.started]
    assert sorted(started) == ["base", "both", "left", "right"]
    assert {one.phase for one in waiting.progress.values()} == {"done"}
    assert waiting.progress["base"].path.startswith("runs/small/base-")


def test_a_lost_lease_kills_the_child_and_commits_nothing(
    small: SmallPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEWAL_SECONDS", 0.05)
    key = small.planner().recipes["base"].fingerprint

    def lose(child: FakeChild) -> None:
        if len(small.children.started) == 1:
            small.storage.write_bytes(lease_name(key, 2, STAGES), json.dumps(stranger()).encode())
            assert child.killed.wait(60), "the child of a driver without a lease goes on"
            assert not (small.folder / f"out/stages/{key}/done.json").exists()

    small.children.before = {"base": lose}
    assert sorted(small.run()) == ["base", "base", "both", "left", "right"]
    record = json.loads((small.folder / f"out/stages/{key}/done.json").read_text())
    assert record["attempt"] == 3


def stranger() -> dict[str, object]:
    """Return the lease of a driver on another machine, which has given it back."""
    other = {"host": "elsewhere", "boot": "x", "namespace": "x", "pid": 1, "started": 1}
    return {"token": "other", **other, "taken": time.time(), "renewed": 0.0}


def test_what_was_interrupted_between_result_and_record_is_recorded_by_the_next_run(small: SmallPipeline) -> None:
    small.run(only="base")
    key = small.planner().recipes["base"].fingerprint
    (small.folder / f"out/stages/{key}/done.json").unlink()
    path = small.path("base")
    assert small.run(only="base") == ["base"]
    assert small.path("base") == path, "it goes on in the same folder"


def test_a_notice_of_termination_reaches_the_children_and_the_same_command_goes_on(small: SmallPipeline) -> None:
    def stop(child: FakeChild) -> int:
        assert child.notified.wait(60)
        return 143

    small.children.before = {"left": stop, "right": stop}
    driver = small.driver()

    def interrupt(progress: object) -> None:
        if sorted(small.children.started) == ["base", "left", "right"]:
            driver._show = lambda _: None
            raise SystemExit(143)

    driver._show = interrupt
    with pytest.raises(SystemExit):
        driver.run((), False)
    assert [driver.progress[name].phase for name in ("left", "right")] == ["stopped", "stopped"]
    with lease(small.storage, small.planner().recipes["left"].fingerprint, above=STAGES):
        pass  # it was given back
    small.children.before = {}
    assert sorted(small.run()) == ["both", "left", "right"]


def test_a_stage_that_can_never_fit_is_refused_with_its_need(small: SmallPipeline) -> None:
    stages = {f"pipeline.stages.{name}": stage.config for name, stage in small.planner().stages.items()}
    with pytest.raises(HardwareError) as caught:
        check_fits(stages, Resources(0.5), "this machine")
    assert "pipeline.stages.base: needs 1 CPUs, and this machine has 0.5 CPUs" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 4
    check_fits(stages, Resources(1.0), "this machine")


def test_what_is_given_back_can_be_reserved_again(small: SmallPipeline) -> None:
    ledger, stages = Ledger(Resources(1.0)), small.planner().stages
    assert ledger.reserve("base", stages["base"].config, is_alone=True) is not None
    assert ledger.reserve("left", stages["left"].config, is_alone=True) is None
    ledger.release("base")
    ledger.release("base")
    assert ledger.reserve("left", stages["left"].config, is_alone=True) is not None
    assert ledger.left == Resources(0.0)


class BusyCluster:
    """All CPUs are another driver's for a while."""

    def __init__(self) -> None:
        self.refused = 0

    def left(self) -> tuple[float, float]:
        return 2.0, 0.0

    def take(self, what: str, cpus: float, gpus: float) -> bool:
        self.refused += 1
        return self.refused > 3

    def give_back(self, what: str) -> None: ...


def test_a_driver_for_which_another_leaves_no_room_waits_says_so_and_then_runs_everything(
    small: SmallPipeline,
) -> None:
    driver, told = small.driver(), set[str]()
    driver._ledger = Ledger(Resources(2.0), BusyCluster())
    driver._show = lambda progress: told.update(one.why for one in progress.values())
    driver.run((), False)
    assert {one.phase for one in driver.progress.values()} == {"done"}
    assert sorted(small.children.started) == ["base", "both", "left", "right"]
    assert "waits for CPUs or GPUs that other processes hold" in told
    driver = small.driver(cpus=0.0)
    driver.run((), False)
    assert {one.was_done for one in driver.progress.values()} == {True}, "what is done needs no room"


@pytest.mark.parametrize(("max_lost_nodes", "num_started"), [(0, 1), (1, 2), (5, 3)])
def test_a_stage_whose_node_is_lost_is_started_anew_so_many_times(
    small: SmallPipeline, max_lost_nodes: int, num_started: int
) -> None:
    def lose(child: FakeChild) -> None:
        if small.children.started.count("left") < 3:
            raise LostNodeError("the node of this stage is gone")

    small.children.before = {"left": lose}
    driver = small.driver(max_lost_nodes=max_lost_nodes)
    if max_lost_nodes < 2:
        with pytest.raises(StageError, match="stage left failed: the node of this stage is gone"):
            driver.run((), True)
    else:
        driver.run((), True)
    assert small.children.started.count("left") == num_started
    assert small.children.started.count("right") == 1


def test_what_trains_joins_the_cluster_of_the_pipeline(small: SmallPipeline) -> None:
    small.driver(address="10.0.0.1:6379").run((), False)
    for order in small.children.orders:
        joins = {"cluster.name=ray", "cluster.address=10.0.0.1:6379"} <= set(order.words)
        assert joins == (order.words[0] == "pretrain")
