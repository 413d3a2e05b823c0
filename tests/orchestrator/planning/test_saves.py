"""Size, interval and goodput of saves."""

from dataclasses import replace

import pytest

from modules.model_config import ModelConfig
from orchestrator.planning.memory import Setting
from orchestrator.planning.save_interval import young_seconds
from orchestrator.planning.saves import saves

SETTING = Setting(ModelConfig(), 8192, "bf16", 256, 4, num_workers=4)


def test_the_interval_is_youngs_unless_writing_takes_longer() -> None:
    quick = saves(SETTING, "ddp", 86400.0, 10.0, 100.0)
    assert quick.cost_seconds == pytest.approx(12 * SETTING.num_trained / 4 / 10e9)
    assert quick.interval_seconds == pytest.approx(young_seconds(quick.cost_seconds or 0, 86400.0))
    slow = saves(SETTING, "ddp", 86400.0, 10.0, 1e-6)
    assert slow.interval_seconds == slow.write_seconds


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
