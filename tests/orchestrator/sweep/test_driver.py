"""The driver of a sweep runs each trial once, side by side as far as there is room, and goes on after a kill."""

import json
import threading
from pathlib import Path

import pytest
from sweeps import FakeTraining, SmallSweep

from orchestrator.checkpoints.attempt import SWEEPS
from orchestrator.cluster.ray_asha import Asha
from orchestrator.errors import LeaseError, LeaseLostError, TrialError
from orchestrator.pipeline import children
from orchestrator.pipeline.admission import Ledger, Resources
from orchestrator.runs import lease as lease_module
from orchestrator.runs.lease import lease
from orchestrator.sweep import driver as driver_module


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(driver_module, "_METRICS_SECONDS", 0.0)


@pytest.fixture
def small(tmp_path: Path) -> SmallSweep:
    return SmallSweep(tmp_path)


def test_each_trial_is_a_run_of_its_own_in_one_group_and_runs_once(small: SmallSweep) -> None:
    assert sorted(small.run()) == ["00000", "00001", "00002", "00003"]
    for order in small.orders:
        trial = order.path.rpartition("/")[2]
        assert order.path == f"runs/small/{trial}"
        assert order.words[0] == "pretrain"
        assert {f"run.name=small/{trial}", "tracking.group=small", "training.num_steps=20"} <= set(order.words)
    assert small.run() == []
    assert small.record("00001")["state"] == "done"
    assert list(small.record("00001")["metric"]) == ["20"]


def test_the_table_says_what_each_trial_tries_and_has_reached(small: SmallSweep) -> None:
    driver = small.driver()
    driver.run()
    rate = small.trials[1].swept["optimizer.learning_rate"]
    assert driver.progress["00001"].why == f"{small.record('00001')['metric']['20']:.4g} with learning_rate={rate}"
    again = small.driver()
    again.run()
    assert again.progress["00001"].why == driver.progress["00001"].why


def test_as_many_trials_run_at_once_as_fit(small: SmallSweep, tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=60)

    def meet(child: FakeTraining) -> None:
        together.wait()

    small.before = {trial.name: meet for trial in small.trials}
    small.run(cpus=2.0)
    assert small.most_at_once == 2
    alone = SmallSweep(tmp_path / "alone")
    alone.run(cpus=1.0)
    assert alone.most_at_once == 1


def test_a_killed_sweep_goes_on_with_what_is_not_done(small: SmallSweep) -> None:
    driver = small.driver(cpus=1.0)

    def interrupt(progress: object) -> None:
        if "00002" in small.started:
            driver._show = lambda _: None
            raise SystemExit(143)

    small.before = {"00002": lambda child: 143 if child.notified.wait(60) else 1}
    driver._show = interrupt
    with pytest.raises(SystemExit):
        driver.run()
    assert small.record("00002")["state"] == "begun"
    small.before = {}
    assert small.run() == ["00002", "00003"]


def test_a_failed_trial_stops_no_other_and_runs_again_with_the_same_command(small: SmallSweep) -> None:
    small.before = {"00001": lambda child: 1}
    with pytest.raises(TrialError, match=r"(?s)trial 00001 failed: .*exit code 1; log: .*small/00001/log\.txt"):
        small.run()
    assert len(small.started) == 4
    assert small.record("00001")["state"] == "failed"
    small.before = {}
    assert small.run() == ["00001"]


def test_a_trial_whose_run_lacks_the_metric_has_failed(small: SmallSweep) -> None:
    small.before = {"00003": lambda child: 0}
    with pytest.raises(TrialError, match="trial 00003 failed: its run has not measured val/loss_clm"):
        small.run()


def test_more_trials_later_leave_the_first_ones_as_they_are(small: SmallSweep, tmp_path: Path) -> None:
    small.run()
    more = SmallSweep(tmp_path, num_trials=6)
    assert more.run() == ["00004", "00005"]
    assert [one.words for one in more.trials[:4]] == [one.words for one in small.trials]


@pytest.mark.parametrize("content", ["", "[]", '{"state": "done"}', '{"state": "done", "metric": {"x": 1}}'])
def test_a_trial_whose_record_is_damaged_runs_again(small: SmallSweep, content: str) -> None:
    small.run()
    (small.folder / "out/sweeps/small/trials/00002.json").write_text(content)
    assert small.run() == ["00002"]


def test_asha_stops_a_worse_trial_and_a_restart_obeys_it(small: SmallSweep) -> None:
    losses = {"00000": (2.0, 1.0, 0.5), "00001": (2.1, 1.1, 0.6), "00002": (9.0, 8.0), "00003": (1.9, 0.9, 0.4)}

    def train(child: FakeTraining) -> int | None:
        child.validate(*losses[child.trial])
        return 143 if child.trial == "00002" and child.notified.wait(60) else None

    small.before = dict.fromkeys(losses, train)
    small.run(cpus=1.0, scheduler=Asha(20, 1, 3.0))
    assert small.record("00002") | {"overrides": 0} == {
        "overrides": 0,
        "run": "small/00002",
        "state": "stopped",
        "metric": {"1": 9.0, "2": 8.0},
        "error": "",
    }
    assert small.run(scheduler=Asha(20, 1, 3.0)) == []


def test_what_asha_learned_is_rebuilt_from_the_records(small: SmallSweep, tmp_path: Path) -> None:
    small.before = {one.name: lambda child: child.validate(1.0, 0.9) for one in small.trials}
    small.run(scheduler=Asha(20, 1, 3.0))
    more = SmallSweep(tmp_path, num_trials=5)

    def be_worse(child: FakeTraining) -> int:
        child.validate(5.0)
        return 143 if child.notified.wait(60) else 1

    more.before = {"00004": be_worse}
    assert more.run(scheduler=Asha(20, 1, 3.0)) == ["00004"]
    assert more.record("00004")["state"] == "stopped"


def test_a_trial_that_diverges_is_stopped(small: SmallSweep) -> None:
    def diverge(child: FakeTraining) -> int:
        child.validate(float("nan"))
        return 143 if child.notified.wait(60) else 1

    small.before = {"00000": diverge}
    small.run(scheduler=Asha(20, 1, 3.0))
    assert small.record("00000")["state"] == "stopped"
    assert small.record("00000")["metric"] == {"1": None}
    assert small.run(scheduler=Asha(20, 1, 3.0)) == []


def test_one_driver_at_a_time(small: SmallSweep) -> None:
    with lease(small.storage, "small", above=SWEEPS), pytest.raises(LeaseError, match="sweep.name=small: process"):
        small.run()
    assert small.started == []


def test_a_lost_lease_kills_the_children_and_records_nothing_more(
    small: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEWAL_SECONDS", 0.05)

    def lose(child: FakeTraining) -> None:
        other = {"token": "other", "host": "elsewhere", "pid": 1, "taken": 0, "renewed": 0.0}
        small.storage.write_bytes("sweeps/small/lease/0000000002.json", json.dumps(other).encode())
        assert child.killed.wait(60), "the child of a driver without a lease goes on"

    small.before = {"00000": lose}
    with pytest.raises(LeaseLostError):
        small.run(cpus=1.0)
    assert small.started == ["00000"]
    assert small.record("00000")["state"] == "begun"


class Crowded:
    """A cluster on which another driver holds everything at first."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    def left(self) -> tuple[float, float]:
        return 2.0, 0.0

    def take(self, what: str, cpus: float, gpus: float) -> bool:
        self.refusals -= 1
        return self.refusals < 0

    def give_back(self, what: str) -> None:
        pass


def test_a_sweep_that_finds_no_room_waits_for_it(small: SmallSweep) -> None:
    driver = small.driver()
    driver._ledger = Ledger(Resources(2.0), Crowded(3))
    driver.run()
    assert len(small.started) == 4


def test_each_trial_gets_its_share_of_the_cores(small: SmallSweep) -> None:
    small.run(cpus=8.0)
    assert {order.num_threads for order in small.orders} == {2}
    assert small.driver()._ledger.left == Resources(2.0)
