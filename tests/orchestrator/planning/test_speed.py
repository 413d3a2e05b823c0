"""Published runs that had no part in the fit are predicted within what was asked for."""

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from bench_plan_throughput import errors, published

from modules.model_config import ModelConfig
from orchestrator.configuration.planning import DeviceConfig, LinkConfig
from orchestrator.planning.memory import Setting
from orchestrator.planning.speed import ERROR, Costs, step_seconds, work


def test_published_runs_that_were_not_fitted_are_predicted() -> None:
    found = sorted(abs(error) for error in errors(published()[1::2]))
    assert len(found) > 100
    assert statistics.median(found) < 0.05
    assert found[int(0.9 * len(found))] <= ERROR


def test_other_programs_runs_are_of_the_same_size() -> None:
    assert [abs(error) < 0.35 for error in errors(published(others=True))] == [True, True]


def test_every_row_names_where_it_is_from() -> None:
    assert {run.source for run in [*published(), *published(others=True)]} == {"llm-foundry", "nanochat", "Megatron-LM"}
    assert all(run.tokens_per_second_per_device == pytest.approx(run.predicted(), rel=0.5) for run in published())


def test_blocks_computed_again_cost_a_third_of_their_products_and_the_head_nothing() -> None:
    of = Setting(ModelConfig(num_layers=2), 50_000, "bf16", 256, 4)
    figures = {
        "half_teraflops": 1.0,
        "memory_gigabytes_per_second": 1e9,
        "link": LinkConfig(name="y", gigabytes_per_second=1),
    }
    device = DeviceConfig(name="x", matmul_efficiency=0.5, attention_efficiency=0.25, **figures)
    products_alone = Costs(activation_passes=0, bytes_per_parameter=0, block_seconds=0)
    plain, again = (work(replace(of, activation_checkpointing=mode), "single", 0.0) for mode in ("none", "blocks"))
    assert 0.5 < plain.head_flops / plain.matmul_flops < 1
    of_blocks = (plain.matmul_flops - plain.head_flops) / 0.5e12 + plain.attention_flops / 0.25e12
    longer = step_seconds(again, device, products_alone) - step_seconds(plain, device, products_alone)
    assert longer == pytest.approx(of_blocks / 3)
