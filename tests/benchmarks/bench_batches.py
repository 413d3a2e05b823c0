"""Training batches beside nanoGPT's: random offsets, a copy a sequence, stack; and what a step waits for them.

The step is a sleep, as of a process whose GPU computes, at 200,000 tokens a second; the peer makes its batches in turn.

Run: python tests/benchmarks/bench_batches.py
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from modules.config import ObjectiveConfig, TokenizerConfig
from modules.data.ahead import MadeAhead
from modules.data.batches import Batch, Batches, BatchSettings, Share
from modules.data.shards import TokenStream
from modules.data.tokenizer import Tokenizer, build_tokenizer
from orchestrator.training.callbacks.throughput import ThroughputMeter

Row = tuple[str, float, float, float]
SHAPES = ((12, 64), (8, 1024))
NUM_TOKENS = 10_000_000
REPEATS = 15
STEPS = 400
TOKENS_PER_SECOND = 200_000


def main() -> list[Row]:
    """Microseconds a batch, ours and nanoGPT's; a ratio above 1 says that ours is faster."""
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.random.default_rng(0).integers(0, 256, NUM_TOKENS).astype("<u2").tofile(path)
        return [
            *(_compare(path, tokenizer, *shape) for shape in SHAPES),
            *(_waits(path, tokenizer, *shape) for shape in SHAPES),
        ]


def _waits(path: Path, tokenizer: Tokenizer, batch_size: int, length: int) -> Row:
    batches = _batches(path, tokenizer, batch_size, length)
    streams = {"ours": iter(MadeAhead(batches, lambda batch: batch)), "peer": iter(batches)}
    step_seconds = batch_size * length / TOKENS_PER_SECOND
    percent: dict[str, list[float]] = {name: [] for name in streams}
    for repeat in range(REPEATS):
        for name in streams if repeat % 2 else reversed(streams):
            meter = ThroughputMeter()
            for _, _ in zip(range(max(20, int(0.5 / step_seconds))), meter.watch(streams[name]), strict=False):
                time.sleep(step_seconds)
                meter.end_step(batch_size * length)
            percent[name].append(100 * meter.metrics()["throughput/data_wait_fraction"])
    ours, peer = statistics.median(percent["ours"]), statistics.median(percent["peer"])
    return f"time that waits for batches {batch_size} x {length} (percent)", ours, peer, peer / ours


def _compare(path: Path, tokenizer: Tokenizer, batch_size: int, length: int) -> Row:
    ours, peer = _ours(path, tokenizer, batch_size, length), _nanogpt(path, batch_size, length)
    times: dict[Callable[[], None], list[float]] = {ours: [], peer: []}
    for repeat in range(REPEATS):
        for run in (ours, peer) if repeat % 2 else (peer, ours):
            start = time.perf_counter()
            run()
            times[run].append((time.perf_counter() - start) / STEPS * 1e6)
    our_time, peer_time = statistics.median(times[ours]), statistics.median(times[peer])
    return f"batch {batch_size} x {length} (microseconds)", our_time, peer_time, peer_time / our_time


def _batches(path: Path, tokenizer: Tokenizer, batch_size: int, length: int) -> Iterator[Batch]:
    tokens = np.memmap(path, dtype="<u2", mode="r").view(np.ndarray)
    text = TokenStream([tokens], np.zeros(1, dtype=np.int64))
    batches = Batches(text, tokenizer, BatchSettings(length, 1, ObjectiveConfig()), Share(batch_size, batch_size))
    return batches.from_step(0)


def _ours(path: Path, tokenizer: Tokenizer, batch_size: int, length: int) -> Callable[[], None]:
    stream = _batches(path, tokenizer, batch_size, length)

    def run() -> None:
        for _ in range(STEPS):
            next(stream)

    return run


def _nanogpt(path: Path, batch_size: int, length: int) -> Callable[[], None]:
    """Source: `get_batch` in karpathy/nanoGPT, train.py, on a CPU."""

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        ix = torch.randint(len(data) - length, (batch_size,))
        x = torch.stack([torch.from_numpy((data[i : i + length]).astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy((data[i + 1 : i + 1 + length]).astype(np.int64)) for i in ix])
        return x, y

    def run() -> None:
        for _ in range(STEPS):
            get_batch()

    return run


if __name__ == "__main__":
    for name, ours, peer, ratio in main():
        print(f"{name:45s} ours {ours:10.1f}   peer {peer:10.1f}   ratio {ratio:5.2f}")
