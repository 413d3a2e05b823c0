"""Size, interval and goodput of saves."""

from dataclasses import replace

import pytest

from modules.model_config import ModelConfig
from orchestrator.planning.memory import Setting, memory
from orchestrator.planning.save_interval import young_seconds
from orchestrator.planning.saves import checkpoint_bytes, saves

SETTING = Setting(ModelConfig(), 8192, "bf16", 256, 4, num_workers=4)


def test_the_interval_is_youngs_unless_writing_takes_longer() -> None:
    quick = saves(SETTING, "ddp", 86400.0, 10.0, 100.0)
    assert quick.cost_seconds == pytest.approx(12 * SETTING.num_trained / 4 / 10e9)
    assert quick.interval_seconds == pytest.approx(young_seconds(quick.cost_seconds or 0, 86400.0))
    slow = saves(SETTING, "ddp", 86400.0, 10.0, 1e-6)
    assert slow.interval_seconds == slow.write_seconds


def test_muon_keeps_one_moment_of_each_matrix_in_the_blocks() -> None:
    muon = replace(SETTING, optimizer="muon")
    matrices = sum(each.numel for each in SETTING.weights if each.name.startswith("blocks.") and each.is_matrix)
    assert checkpoint_bytes(SETTING) - checkpoint_bytes(muon) == 4 * matrices
    for strategy in ("single", "ddp", "zero1", "zero3"):
        holders = SETTING.num_workers if strategy.startswith("zero") else 1
        less = memory(SETTING, strategy).optimizer - memory(muon, strategy).optimizer
        assert less == pytest.approx(4 * matrices / holders, abs=4)


def test_without_a_copy_training_waits_for_the_store() -> None:
    found = saves(replace(SETTING, keeps_snapshot=False), "ddp", 86400.0, 10.0, 2.0)
    assert found.cost_seconds == found.write_seconds


def test_what_is_not_known_gives_no_interval_and_no_goodput() -> None:
    found = saves(SETTING, "ddp", 86400.0, None, None)
    assert (found.cost_seconds, found.write_seconds, found.interval_seconds, found.goodput(60)) == (None,) * 4


def test_faults_that_nothing_is_known_of_give_no_interval() -> None:
    found = saves(SETTING, "ddp", None, 10.0, 100.0)
    assert (found.interval_seconds, found.goodput(60)) == (None, None)
    assert found.cost_seconds is not None


def test_goodput_is_never_negative() -> None:
    assert saves(SETTING, "single", 10.0, 0.001, None).goodput(300) == 0.0
