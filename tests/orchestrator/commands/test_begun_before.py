"""This version continues a run that an earlier version began: same recipe, same data, same curve."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

from orchestrator.artifacts.recipe import fingerprint
from orchestrator.cli import main
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.runs.run import training_recipe

pytestmark = pytest.mark.slow
BEGUN = Path(__file__).resolve().parents[2] / "fixtures" / "run_begun_at_0619955.tar.gz"
"""Made by commit 0619955: a run of twenty steps that was interrupted after the checkpoint at step ten.

The archive also holds, below `expected/`, the final metrics of the same run without the interruption.
"""
COMMAND = (
    *("pretrain", "run.name=begun", "data=files", "data.path=text.txt", "data.split=position", "data.val_fraction=0.1"),
    *("tokenizer=byte", "model.num_layers=1", "model.num_heads=2", "model.hidden_dim=16", "model.max_positions=16"),
    *("objective=mixed", "optimizer.warmup_steps=4", "training.num_steps=20", "training.sequence_length=16"),
    *("training.global_batch_size=8", "training.val_interval_steps=10", "training.val_batches=2"),
    *("checkpoint.interval_steps=10", "tracking.mode=disabled"),
)


@pytest.fixture
def begun(empty_folder: Path) -> Path:
    with tarfile.open(BEGUN) as archive:
        archive.extractall(empty_folder, filter="data")
    return empty_folder / "outputs/runs/begun"


def test_run_begun_by_an_earlier_version_goes_on(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = (begun / "recipe.json").read_bytes()
    prepared = sorted(path.name for path in Path("outputs/data").iterdir())
    assert main(COMMAND) == 0
    said = capsys.readouterr().out
    assert "continues from the checkpoint after step 10" in said
    assert "prepared" not in said
    assert (begun / "recipe.json").read_bytes() == recipe
    assert sorted(path.name for path in Path("outputs/data").iterdir()) == prepared
    expected, found = (
        json.loads(path.read_bytes()) for path in (Path("expected/metrics.json"), begun / "metrics.json")
    )
    for name in ("train/loss", "val/loss_clm", "val/loss_mlm", "optimizer/grad_norm", "optimizer/lr"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def test_run_goes_on_with_data_that_this_version_has_prepared_anew(begun: Path) -> None:
    (folder,) = Path("outputs/data").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    assert main(COMMAND) == 0
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    added = {"train_document_rows.bin", "val_document_rows.bin"}
    assert found.keys() - before.keys() == added
    of_manifest = {"manifest.json", "COMMITTED"}
    assert {name for name in before if found[name] != before[name]} <= of_manifest
    metrics = [json.loads(path.read_bytes()) for path in (Path("expected/metrics.json"), begun / "metrics.json")]
    assert metrics[1]["val/loss_mlm"] == pytest.approx(metrics[0]["val/loss_mlm"], rel=1e-4)


def test_fingerprint_of_a_run_without_a_name_is_that_of_the_earlier_version(begun: Path) -> None:
    asked = yaml.safe_load((begun / "config.yaml").read_text())
    recipe = json.loads((begun / "recipe.json").read_bytes())
    made = training_recipe(PretrainConfig.model_validate(asked), recipe["data"])
    assert made == recipe
    assert fingerprint(made) == "e8b7f72283b46383"


def test_run_of_an_earlier_version_tells_what_its_steps_saw_but_for_the_rows(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("batch", "run.name=begun", "step=10", "worker=0")) == 0
    said = capsys.readouterr().out
    assert said.startswith("step 10: samples 72 to 79, clm")
    assert said.count("worker 0, position") == 8
    assert "files and rows are not known: an earlier version has prepared this data" in said
    assert main(("batch", "run.name=begun", "step=11")) == 2
    assert "it has reached step 10" in capsys.readouterr().err
