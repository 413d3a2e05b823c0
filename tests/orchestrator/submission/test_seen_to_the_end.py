"""Submitted trainings, pipelines and sweeps join the job's cluster, end with code 0, and leave models in storage."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from job_server import job_server
from tiny_run import TINY, write_text
from troubled_store import troubled_store

from orchestrator.cli import main
from orchestrator.storage.store import Storage

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, troubled_store(patch) as store:
        yield store.root


@pytest.fixture(scope="module")
def address(root: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a cluster whose nodes have the store's credentials in their environment."""
    with job_server(tmp_path_factory.mktemp("home")) as address:
        yield address


@pytest.fixture(autouse=True)
def _project(empty_folder: Path) -> None:
    """The cluster's Python has the package, so the folder that is sent holds the text alone."""
    write_text(empty_folder / "text.txt")


def submit(address: str, *words: str) -> int:
    return main(["submit", "--wait", "--address", address, *words])


def test_training_of_two_workers_joins_the_cluster_of_its_job(
    address: str, root: str, capfd: pytest.CaptureFixture[str]
) -> None:
    workers = ("cluster=ray", "cluster.num_workers=2", "strategy=zero2")
    settings = (*TINY, "data.path=text.txt", f"storage.root={root}", "run.name=two", *workers)
    assert submit(address, "pretrain", *settings) == 0
    said = capfd.readouterr().out
    assert "starting 2 workers on the Ray cluster at auto" in said
    assert "two-attempt1: done after" in said
    assert "is a path of this machine" not in said
    storage = Storage(root)
    assert storage.exists("runs/two/model/COMMITTED")
    assert json.loads(storage.read_bytes("runs/two/metrics.json"))["progress/step"] == 20
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in said


def test_pipeline_of_the_folder_that_is_sent_is_run_to_its_last_stage(
    address: str, root: str, empty_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = ["data=files", "data.path=text.txt", "data.split=position", "data.val_fraction=0.1"]
    stages = {
        "base": {"command": "pretrain", "overrides": [*TINY, "data.path=text.txt", "tracking=disabled"]},
        "score": {"command": "evaluate", "overrides": data, "inputs": {"model.path": "base"}},
    }
    pipeline = empty_folder / "conf" / "pipeline" / "mine.yaml"
    pipeline.parent.mkdir(parents=True)
    pipeline.write_text("# @package pipeline\n" + yaml.safe_dump({"name": "mine", "stages": stages}))
    typed = ("--config-dir", "conf", "run", "+pipeline=mine", f"storage.root={root}")
    assert submit(address, *typed) == 0
    storage = Storage(root)
    (base,) = [name for name in storage.list("runs/mine") if name.startswith("base-")]
    assert storage.exists(f"runs/mine/{base}/model/COMMITTED")
    assert "run-mine-attempt1: done after" in capfd.readouterr().out
    assert submit(address, *typed) == 0
    said = capfd.readouterr().out
    assert "submitted run-mine-attempt2; run-mine-attempt1 is done" in said
    assert "score  done before" in said


def test_sweep_is_searched_on_the_cluster(address: str, root: str, capfd: pytest.CaptureFixture[str]) -> None:
    search = ("sweep=random", "sweep.num_trials=2", "sweep.name=rates", "optimizer.learning_rate=interval(1e-4,1e-2)")
    settings = (*TINY, "data.path=text.txt", f"storage.root={root}", "tracking=disabled")
    assert submit(address, "--multirun", "pretrain", *search, *settings) == 0
    storage = Storage(root)
    best = json.loads(storage.read_bytes("sweeps/rates/best.json"))
    assert storage.exists(f"runs/{best['run']}/model/COMMITTED")
    assert "rates-attempt1: done after" in capfd.readouterr().out
