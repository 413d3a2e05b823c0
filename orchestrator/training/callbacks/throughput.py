"""Tokens per second, MFU, time waiting for data and peak memory of the training process."""

import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from pytorch_lightning import Callback, Trainer

from modules.model_config import ModelConfig

T = TypeVar("T")

_PEAK_FLOPS = (
    (r"B200", 2250e12),
    (r"GH200|H200(?! NVL)|H100(?! (PCIe|NVL))", 989e12),
    (r"H[12]00 NVL", 835e12),
    (r"H100 PCIe", 756e12),
    (r"A100", 312e12),
    (r"A10G", 70e12),
    (r"A10\b", 125e12),
    (r"A30\b", 165e12),
    (r"A40\b", 149.7e12),
    (r"L40S", 362e12),
    (r"L40\b", 181e12),
    (r"L4\b", 121e12),
    (r"RTX 6000 Ada", 364e12),
    (r"RTX A6000", 154.8e12),
    (r"RTX 4090", 165.2e12),
    (r"RTX 3090", 71e12),
    (r"V100", 125e12),
    (r"T4\b", 65e12),
)
"""Dense bfloat16 (float16 on V100 and T4) with float32 sums, without sparsity. Source: NVIDIA's data sheets."""


def flops_per_token(model: ModelConfig, vocab_size: int, sequence_length: int) -> float:
    """Return the floating-point operations that a training step needs for one token, forward and backward.

    `6 N + 12 L D T`, N the weights of all matrix products, the output head among them; embeddings are looked up.
    As usual for MFU it counts the whole T x T attention, of which causal attention needs half, and the head at
    every position, of which masked prediction needs few: operations that a kernel skips count as done.

    Source: PaLM (Chowdhery et al. 2022, appendix B); nanoGPT `model.py`, `estimate_mfu`.
    """
    width, layers, inner = model.hidden_dim, model.num_layers, model.num_heads * model.width_per_head
    attention = 2 * width * inner + 2 * width * model.kv_heads * model.width_per_head
    feed_forward = (2 if model.family == "gpt2" else 3) * width * model.feed_forward_dim
    weights = layers * (attention + feed_forward) + vocab_size * width
    return 6.0 * weights + 12.0 * layers * inner * sequence_length


def peak_flops(device_name: str) -> float:
    """Return the highest half-precision rate of a GPU in operations per second; 0 if it is not known."""
    for pattern, flops in _PEAK_FLOPS:
        if re.search(pattern, device_name):
            return flops
    return 0.0


class ThroughputMeter:
    """Measures intervals of training; a step costs one addition.

    Time is taken from one `metrics()` to the next, so that work still queued on a GPU is never missed. Call it after
    something that waits for the device, such as reading a loss.

    Args:
        flops_per_token: See `flops_per_token`.
        peak_flops: Of all workers' devices together; 0 where it is not known.
        clock: Seconds.
    """

    def __init__(
        self,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._clock = clock
        self._last: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        """Begin the training."""
        self._began, self._all_paused_seconds = self._clock(), 0.0
        self.start()

    def start(self) -> None:
        """Begin an interval."""
        self._started = self._clock()
        self._steps = self._tokens = 0
        self._data_seconds = self._paused_seconds = 0.0

    def end_step(self, num_tokens: int) -> None:
        """Count a finished optimizer step, and its tokens over all workers."""
        self._steps += 1
        self._tokens += num_tokens

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield `batches`, counting the time until each arrives as waiting for data."""
        iterator = iter(batches)
        while True:
            requested = self._clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._data_seconds += self._clock() - requested
            yield batch

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time inside this context, as for a validation or a save."""
        began = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - began
            self._paused_seconds += seconds
            self._all_paused_seconds += seconds

    def training_seconds(self) -> float:
        """Return the time since the training began, without the pauses."""
        return self._clock() - self._began - self._all_paused_seconds

    def metrics(self) -> dict[str, float]:
        """Return the figures since the last call, by metric name, and begin a new interval.

        If no step has finished since then, they are those of the previous interval; empty before the first step.
        """
        self._last = self.metrics_so_far()
        if self._steps:
            self.start()
        return self._last

    def metrics_so_far(self) -> dict[str, float]:
        """Return the same figures as `metrics`, and let the interval go on."""
        if not self._steps:
            return self._last
        seconds = max(self._clock() - self._started - self._paused_seconds, 1e-9)
        rate = self._tokens / seconds
        return {
            "throughput/tokens_per_second": rate,
            "throughput/mfu": rate * self._flops_per_token / self._peak_flops if self._peak_flops else 0.0,
            "throughput/step_seconds": seconds / self._steps,
            "throughput/data_wait_fraction": min(self._data_seconds / seconds, 1.0),
        }


class Throughput(Callback):
    """A `ThroughputMeter` for Lightning.

    Args:
        sequence_length: Tokens that attend to each other.
    """

    def __init__(self, sequence_length: int) -> None:
        self._sequence_length = sequence_length
        self._device = torch.device("cpu")
        self._num_tokens = 0
        self.meter = ThroughputMeter()

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Compute the operations per token and the peak rate of the devices."""
        self._device = trainer.strategy.root_device
        on_gpu = self._device.type == "cuda"
        peak = peak_flops(torch.cuda.get_device_name(self._device)) if on_gpu else 0.0
        cost = flops_per_token(pl_module.model_config, pl_module.vocab_size, self._sequence_length)
        self.meter = ThroughputMeter(cost, peak * trainer.world_size)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin to measure."""
        self._num_tokens = pl_module.num_tokens
        self.meter.begin()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Count the step when its last micro-batch is done."""
        if pl_module.ends_step(index):
            before, self._num_tokens = self._num_tokens, pl_module.num_tokens
            self.meter.end_step(self._num_tokens - before)

    def watch(self, batches: Iterable[T]) -> Iterable[T]:
        """Return `batches` and count the time until each arrives as waiting for data."""
        return _Watched(self, batches)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time inside this context, after waiting for work that is still queued on the GPU."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        with self.meter.pause():
            yield

    def metrics(self) -> dict[str, float]:
        """Return the metrics since the last call, by name."""
        return {**self.meter.metrics(), "memory/peak_bytes": float(peak_memory_bytes(self._device))}

    def metrics_so_far(self) -> dict[str, float]:
        """Return the same figures as `metrics`, and let the interval go on."""
        return {**self.meter.metrics_so_far(), "memory/peak_bytes": float(peak_memory_bytes(self._device))}


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: on its GPU, or in main memory without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # ru_maxrss is in KiB on Linux and in bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Watched(Iterable[T]):
    def __init__(self, throughput: Throughput, batches: Iterable[T]) -> None:
        self._throughput, self._batches = throughput, batches

    def __iter__(self) -> Iterator[T]:
        # the meter is looked up here, because it is replaced when the fit starts
        return self._throughput.meter.watch(self._batches)
