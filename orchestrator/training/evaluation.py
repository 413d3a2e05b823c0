"""Measure how well a model predicts a token stream, and how well compressors pack the same text."""

import gzip
import lzma
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from modules.config import ObjectiveConfig
from modules.data.batches import BatchMaker, BatchSettings
from modules.data.shards import TokenStream
from modules.validation import validation_metrics, validation_sums
from orchestrator.artifacts.models import TrainedModel

_COMPRESSED_BYTES = 64 * 2**20
"""xz -9 takes a second per megabyte, so only this much of a longer text is compressed."""


@dataclass(frozen=True)
class Windows:
    """Consecutive, non-overlapping windows of a token stream."""

    stream: TokenStream
    length: int
    """Tokens in a window."""
    count: int
    batch_size: int

    @classmethod
    def of(cls, stream: TokenStream, length: int, batch_size: int, limit: int | None) -> "Windows":
        """Return as many windows as fit into the stream, at most `limit`; an incomplete last window is left out."""
        count = max(0, len(stream) - 1) // length
        return cls(stream, length, min(count, limit or count), batch_size)


@torch.no_grad()
def evaluate(
    trained: TrainedModel, windows: Windows, objective: ObjectiveConfig, seed: int, progress: Callable[[int], None]
) -> dict[str, float]:
    """Return perplexity, bits per byte and, where the model knows the mask token, masked accuracy, by metric name.

    Args:
        progress: Receives the number of windows done.

    Raises:
        InputError: the text is shorter than one window.
    """
    settings = BatchSettings(windows.length, seed, objective, with_masked=trained.knows_mask)
    maker = BatchMaker(windows.stream, trained.tokenizer, settings, trained.tokenizer.token_num_bytes())
    total = torch.zeros(6, dtype=torch.float64)
    for first in range(0, windows.count, windows.batch_size):
        samples = np.arange(first, min(first + windows.batch_size, windows.count))
        batch = maker.make(samples * windows.length, samples, 0)
        on_device = {name: v.to(trained.device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
        total += validation_sums(trained.model, on_device).cpu()
        progress(int(samples[-1]) + 1)
    return validation_metrics(total)


def compression(trained: TrainedModel, windows: Windows) -> dict[str, float]:
    """Return bits per byte that `gzip -9` and `xz -9` reach on the same text, by name."""
    ids = np.empty((1, windows.count * windows.length), dtype=np.int64)
    windows.stream.fill(np.array([0]), ids.shape[1], ids)
    text = trained.tokenizer.decode(ids[0].tolist()).encode()[:_COMPRESSED_BYTES]
    packed = {"gzip -9": gzip.compress(text, 9), "xz -9": lzma.compress(text, preset=9)}
    return {name: 8 * len(data) / len(text) for name, data in packed.items()}
