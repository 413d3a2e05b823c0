from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modules.model_config import ModelConfig
from orchestrator.training.callbacks.throughput import (
    Throughput,
    ThroughputMeter,
    flops_per_token,
    peak_flops,
    peak_memory_bytes,
)

GPT2_124M = ModelConfig(num_layers=12, num_heads=12, hidden_dim=768, max_positions=1024)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_figures_follow_from_steps_time_and_waiting() -> None:
    clock = Clock()
    meter = ThroughputMeter(flops_per_token=3e6, peak_flops=1e10, clock=clock)

    def batches() -> Any:
        for number in range(4):
            clock.now += 0.5
            yield number

    for _ in meter.watch(batches()):
        clock.now += 1.5
        meter.end_step(1000)
    metrics = meter.metrics()
    assert metrics["throughput/step_seconds"] == pytest.approx(2.0)
    assert metrics["throughput/tokens_per_second"] == pytest.approx(500.0)
    assert metrics["throughput/mfu"] == pytest.approx(500 * 3e6 / 1e10)
    assert metrics["throughput/data_wait_fraction"] == pytest.approx(0.25)


def test_each_interval_is_measured_alone() -> None:
    clock = Clock()
    meter = ThroughputMeter(clock=clock)
    for seconds in (1.0, 4.0):
        clock.now += seconds
        meter.end_step(100)
        assert meter.metrics()["throughput/step_seconds"] == pytest.approx(seconds)


def test_pauses_count_as_no_training() -> None:
    clock = Clock()
    meter = ThroughputMeter(clock=clock)
    clock.now += 2.0
    meter.end_step(100)
    with pytest.raises(RuntimeError), meter.pause():
        clock.now += 60.0
        raise RuntimeError
    assert meter.metrics()["throughput/step_seconds"] == pytest.approx(2.0)


def test_without_a_step_nothing_new_is_reported() -> None:
    meter = ThroughputMeter()
    assert meter.metrics() == {}
    meter.end_step(100)
    assert meter.metrics() == meter.metrics()


def test_mfu_is_zero_where_the_peak_is_not_known() -> None:
    meter = ThroughputMeter(flops_per_token=1e6)
    meter.end_step(100)
    assert meter.metrics()["throughput/mfu"] == 0.0


def test_cost_of_a_token_is_that_of_nanogpt_for_gpt2() -> None:
    # Source: nanoGPT's estimate_mfu for GPT-2 124M: N = 124,439,808 - 786,432 positions = 123,653,376, biases and
    # norms of 121,344 included, which are no matrix products; L=12, H=12, Q=64, T=1024.
    nanogpt = 6 * 123_653_376 + 12 * 12 * 12 * 64 * 1024
    assert flops_per_token(GPT2_124M, 50257, 1024) == pytest.approx(nanogpt, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("Some GPU of 2031", 0),
    ],
)
def test_peak_is_known_by_name(name: str, tflops: float) -> None:
    assert peak_flops(name) == tflops * 1e12


def test_peak_memory_of_this_process_is_plausible() -> None:
    assert 10e6 < peak_memory_bytes(torch.device("cpu")) < 1e12


def test_callback_counts_optimizer_steps_not_micro_batches() -> None:
    module = SimpleNamespace(model_config=GPT2_124M, vocab_size=50257, num_tokens=5000)
    module.ends_step = lambda index: (index + 1) % 4 == 0
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), world_size=2)
    throughput: Any = Throughput(sequence_length=1024)
    throughput.on_fit_start(trainer, module)
    clock = Clock()
    throughput.meter = ThroughputMeter(clock=clock)
    throughput.on_train_start(trainer, module)
    for index, batch in enumerate(throughput.watch([None] * 8)):
        clock.now += 1.0
        module.num_tokens += 1000 * module.ends_step(index)
        throughput.on_train_batch_end(trainer, module, None, batch, index)
    with throughput.pause():
        clock.now += 100.0
    metrics = throughput.metrics()
    assert metrics["throughput/step_seconds"] == 4.0
    assert metrics["throughput/tokens_per_second"] == 250.0
    assert set(metrics) == {
        "throughput/tokens_per_second",
        "throughput/mfu",
        "throughput/step_seconds",
        "throughput/data_wait_fraction",
        "memory/peak_bytes",
    }
