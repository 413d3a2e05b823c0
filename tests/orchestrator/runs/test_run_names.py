"""Runs of a pipeline lie one folder deeper, and are found by names with a slash."""

import json
from pathlib import Path

import pytest

from orchestrator.artifacts.model_folders import StoredFolder
from orchestrator.checkpoints.names import name_of, step_of
from orchestrator.evaluation.tracked_run import run_of
from orchestrator.runs.run import find_run, folder_names, has_folder
from orchestrator.storage.store import Storage


def stored(folder: Path) -> Storage:
    storage = Storage(str(folder))
    for name in ("alone", "alone/model", "pipeline/base-01234567", "pipeline/base-01234567/model"):
        storage.write_bytes(f"runs/{name}/recipe.json", json.dumps({"command": "pretrain"}).encode())
        storage.write_bytes(f"runs/{name}/run.json", json.dumps({"wandb_run_id": "id"}).encode())
    return storage


def test_a_run_within_a_pipeline_is_found_and_the_parts_of_a_run_are_none(tmp_path: Path) -> None:
    storage = stored(tmp_path)
    assert folder_names(storage) == ["alone", "pipeline", "pipeline/base-01234567"]
    found = find_run(storage, "pipeline/base-01234567")
    assert found is not None
    assert found.folder == "runs/pipeline/base-01234567"


def test_one_name_is_looked_for_without_listing_what_lies_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = stored(tmp_path)
    asked = ["alone", "alone/model", "pipeline", "pipeline/base-01234567", "pipeline/", "none", "../runs/alone", ""]
    assert [name for name in asked if has_folder(storage, name)] == folder_names(storage)
    listed, list_folder = [], storage.list
    monkeypatch.setattr(storage, "list", lambda name, **how: listed.append(name) or list_folder(name, **how))
    assert has_folder(storage, "pipeline/base-01234567")
    assert has_folder(storage, "alone")
    assert listed == ["runs", "runs/pipeline", "runs"]


def test_the_run_of_a_model_in_a_pipeline_is_known_to_its_evaluation(tmp_path: Path) -> None:
    storage = stored(tmp_path)
    for name in ("alone", "pipeline/base-01234567"):
        run = run_of(StoredFolder(Storage(str(tmp_path / "runs" / name)), "model"), storage)
        assert run is not None
        assert run.name == name
    assert run_of(StoredFolder(Storage(str(tmp_path / "elsewhere/alone")), "model"), storage) is None


def test_a_checkpoint_of_a_run_in_a_pipeline_has_a_step() -> None:
    assert step_of(name_of("pipeline/base-01234567", 20)) == 20
    assert step_of(f"{name_of('alone', 7)}/manifest.json") == 7
    assert step_of("runs/a/b/c/checkpoints/step_00000001") is None
