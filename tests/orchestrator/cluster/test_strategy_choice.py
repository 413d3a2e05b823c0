"""`strategy=auto` is decided before workers start, and no part of what a run is."""

from typing import Any

import pytest

from orchestrator.cluster import strategy_choice
from orchestrator.cluster.strategy_choice import with_strategy
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.errors import ConfigError
from orchestrator.planning.memory import memory, needed
from orchestrator.planning.setting import setting_of
from orchestrator.runs.run import training_recipe

SHAPE = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "max_positions": 1024}


def config(strategy: dict[str, Any], **cluster: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "model": SHAPE,
            "training": {"global_batch_size": 64, "micro_batch_size": 4, "sequence_length": 1024},
            "strategy": strategy,
            "cluster": {"num_workers": 4, "gpus_per_worker": 1, **cluster},
        }
    )


def choose(gigabytes: float) -> tuple[PretrainConfig, str | None]:
    return with_strategy(config({"name": "auto", "memory_gigabytes": gigabytes}), lambda: 50257)


def test_auto_becomes_the_simplest_strategy_that_fits_and_is_told() -> None:
    assert choose(80.0)[0].strategy.name == "ddp"
    setting = setting_of(config({"name": "ddp"}), 50257, "cuda")
    made, line = choose((needed(memory(setting, "ddp"), setting) / 0.92 - 1e6) / 1e9)
    assert made.strategy.name == "zero1"
    assert line is not None
    assert line.startswith("strategy=auto: zero1, the simplest that fits")


def test_another_strategy_is_kept_without_a_look_at_the_vocabulary() -> None:
    given = config({"name": "zero2"})
    assert with_strategy(given, pytest.fail) == (given, None)


def test_a_run_continues_when_auto_chooses_another_strategy() -> None:
    recipes = [training_recipe(choose(size)[0], "data") for size in (80.0, 10.0)]
    assert choose(80.0)[0].strategy != choose(10.0)[0].strategy
    assert recipes[0] == recipes[1] == training_recipe(config({"name": "zero3"}), "data")


def test_memory_of_another_cluster_must_be_given() -> None:
    given = config({"name": "auto"}, name="ray", address="auto")
    with pytest.raises(ConfigError, match=r"strategy\.memory_gigabytes"):
        with_strategy(given, lambda: 50257)


def test_half_precision_weights_need_not_name_a_zero_stage() -> None:
    values = config({"name": "auto", "memory_gigabytes": 80.0}).model_dump()
    values["training"]["precision"] = "bf16-true"
    made, _ = with_strategy(PretrainConfig.model_validate(values), lambda: 50257)
    assert made.strategy.name == "zero1"


def test_workers_of_a_processor_share_the_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 4e9

    monkeypatch.setattr(strategy_choice.psutil, "virtual_memory", lambda: Memory)
    with pytest.raises(ConfigError, match=r"has 0\.92 GB"):
        with_strategy(config({"name": "auto"}, gpus_per_worker=0), lambda: 50257)


def test_a_driver_that_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="nvidia-smi"):
        with_strategy(config({"name": "auto"}), lambda: 50257)


def test_offloaded_state_must_fit_into_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 1e9

    monkeypatch.setattr(strategy_choice.psutil, "virtual_memory", lambda: Memory)
    monkeypatch.setattr(strategy_choice, "_smallest_gpu_bytes", lambda: 30e9)
    with pytest.raises(ConfigError, match=r"and 0\.23 GB of the host"):
        with_strategy(config({"name": "auto"}), lambda: 50257)
    given = config({"name": "auto"}, name="ray")
    monkeypatch.setattr(Memory, "available", 100e9)
    assert with_strategy(given, lambda: 50257)[0].strategy.name == "ddp"
