"""Figures of an evaluation under the W&B run that trained the model."""

from pathlib import Path

import pytest
import yaml
from offline_wandb import read_records, summary_of

from orchestrator.artifacts.model_folders import StoredFolder
from orchestrator.evaluation.tracked_run import run_of, track
from orchestrator.runs.json_files import write_object
from orchestrator.storage.store import Storage


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    made = Storage(str(tmp_path / "outputs"))
    write_object(made, "runs/mine/recipe.json", {"command": "pretrain"})
    write_object(made, "runs/mine/run.json", {"wandb_run_id": "abcd1234", "where_to_look": []})
    set_mode(made, "offline")
    return made


def set_mode(root: Storage, mode: str) -> None:
    root.write_bytes("runs/mine/config.yaml", yaml.safe_dump({"tracking": {"mode": mode, "project": "p"}}).encode())


def folder(root: Storage, name: str) -> StoredFolder:
    return StoredFolder(Storage(root.url(name.rpartition("/")[0])), name.rpartition("/")[2])


def test_the_run_of_a_model_is_found_and_no_other_folder_has_one(root: Storage, tmp_path: Path) -> None:
    found = run_of(folder(root, "runs/mine/model"), root)
    assert found is not None
    assert (found.name, found.wandb_run_id) == ("mine", "abcd1234")
    assert run_of(folder(root, "runs/mine/exports"), root) is None
    assert run_of(folder(root, "runs/other/model"), root) is None
    assert run_of(folder(Storage(str(tmp_path / "elsewhere")), "runs/mine/model"), root) is None
    assert run_of(StoredFolder(Storage("/"), "model"), root) is None


def test_a_run_without_an_id_in_wandb_gets_none(root: Storage) -> None:
    write_object(root, "runs/mine/run.json", {})
    assert run_of(folder(root, "runs/mine/model"), root) is None


def test_figures_go_under_the_same_id_offline(root: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(folder(root, "runs/mine/model"), root)
    assert run is not None
    lines = track(run, root, {"harness/capitals/acc": 0.25}, print)
    (file,) = Path(root.url("runs/mine")).glob("wandb/offline-run-*/*.wandb")
    records = read_records(file)
    assert summary_of(records)["harness/capitals/acc"] == 0.25
    assert next(one.run for one in records if one.HasField("run")).run_id == "abcd1234"
    assert "wandb sync" in lines[-1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("config", ["disabled", None])
def test_nothing_is_sent_where_tracking_is_disabled_or_not_known(root: Storage, config: str | None) -> None:
    if config:
        set_mode(root, config)
    else:
        root.remove("runs/mine/config.yaml")
    run = run_of(folder(root, "runs/mine/model"), root)
    assert run is not None
    assert track(run, root, {"harness/capitals/acc": 0.25}, print) == []
    assert not Path(root.url("runs/mine/wandb")).exists()
