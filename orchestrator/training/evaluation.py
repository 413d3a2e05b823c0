"""Measure how well a model predicts a token stream, and how well compressors pack the same text."""

import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from modules.config import ObjectiveConfig
from modules.data.batches import Batch, BatchMaker, BatchSettings, ValidationBatches
from modules.data.shards import TokenStream
from modules.data.tokenizer import END_OF_TEXT, Tokenizer
from modules.errors import InputError
from modules.mixed_validation import NUM_SUMS, mixed_metrics
from modules.validation import validation_metrics, validation_sums
from orchestrator.artifacts.mixture import of_source
from orchestrator.artifacts.models import TrainedModel

_COMPRESSED_BYTES = 64 * 2**20
"""xz -9 takes a second per megabyte, so only this much of a longer text is compressed."""
_GZIP = 31
"""What zlib calls the form of gzip."""
_BLOCK_TOKENS = 2**16
_PLANNED_BATCHES = 64
_LONGEST_CHARACTER_BYTES = 4


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

    def plan(self, first: int, num_batches: int) -> None:
        """Say that so many batches are read next, so that they are fetched beforehand."""
        stop = min(first + num_batches * self.batch_size, self.count)
        self.stream.plan(np.arange(first, stop) * self.length, self.length + 1, with_bytes=True)


def evaluate(
    trained: TrainedModel,
    windows: Mapping[str, Windows],
    weights: Mapping[str, float],
    objective: ObjectiveConfig,
    seed: int,
    progress: Callable[[int], None],
) -> dict[str, float]:
    """Return the metrics that the validation of a training has over the same windows, by name.

    The model reads text as in its training: within documents, with the same precision and, under the same seed, masks.
    Masked metrics are there if it knows the mask token.

    Args:
        windows: Of a text without a name, or of each source of a mixture by its name.
        weights: Of the sources of a mixture.
        progress: Receives the number of windows done.

    Raises:
        InputError: the text is shorter than one window, or holds a token for which the model has no row.
    """
    sums, done = [], 0
    for name, of_one in windows.items():
        with of_source(name) if name else nullcontext():
            sums.append(_sums(trained, of_one, objective, seed, lambda count, done=done: progress(done + count)))
        done += of_one.count
    if "" in windows:
        return validation_metrics(sums[0])
    return mixed_metrics(torch.cat(sums), list(windows), [weights.get(name, 1.0) for name in windows])


@torch.no_grad()
def _sums(
    trained: TrainedModel, windows: Windows, objective: ObjectiveConfig, seed: int, progress: Callable[[int], None]
) -> torch.Tensor:
    """Return what `validation_sums` sums up over all windows."""
    settings = BatchSettings(
        sequence_length=windows.length,
        seed=seed + ValidationBatches.MASK_SEED_OFFSET,
        objective=objective,
        with_masked=trained.knows_mask,
        with_documents=trained.reads_documents_apart,
        restarts_positions=trained.restarts_positions,
    )
    maker = BatchMaker(windows.stream, trained.tokenizer, settings, counts_bytes=True)
    total = torch.zeros(NUM_SUMS, dtype=torch.float64)
    for first in range(0, windows.count, windows.batch_size):
        if first % (_PLANNED_BATCHES * windows.batch_size) == 0:
            windows.plan(first, 2 * _PLANNED_BATCHES)
        samples = np.arange(first, min(first + windows.batch_size, windows.count))
        batch = maker.make(samples * windows.length, samples, 0)
        _check_rows(trained, batch)
        on_device = {name: v.to(trained.device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
        with trained.precision():
            total += validation_sums(trained.model, on_device).cpu()
        progress(int(samples[-1]) + 1)
    return total


def _check_rows(trained: TrainedModel, batch: Batch) -> None:
    largest = int(max(batch["input_ids"].max(), batch["targets"].max()))
    if largest >= trained.model.vocab_size:
        name = (
            trained.tokenizer.token_of(largest) or END_OF_TEXT
        )  # put after each document of a model without end token
        raise InputError(
            f"the text has token {largest} ({name}), but the model has rows for tokens "
            f"0 to {trained.model.vocab_size - 1}; it needs the tokenizer and eos_token_id that it was trained with"
        )


def compression(trained: TrainedModel, windows: Windows) -> dict[str, float]:
    """Return bits per byte that `gzip -9` and `xz -9` reach on the same text, by name.

    Empty if the tokens do not give the text back: the compressors would pack another one. Only a block of text is in
    memory at a time.
    """
    packers = {"gzip -9": zlib.compressobj(9, wbits=_GZIP), "xz -9": lzma.LZMACompressor(preset=9)}
    packed = dict.fromkeys(packers, 0)
    num_tokens, num_bytes = 0, 0
    for ids, text in _decoded(trained, windows):
        num_tokens, num_bytes = num_tokens + len(ids), num_bytes + len(text)
        for name, packer in packers.items():
            packed[name] += len(packer.compress(text))
        if num_bytes >= _COMPRESSED_BYTES:
            break
    expected = windows.stream.num_bytes(np.array([0]), num_tokens)
    # the last token may end within a character, which is then decoded as another one
    if not num_bytes or expected is None or abs(num_bytes - expected) > _LONGEST_CHARACTER_BYTES:
        return {}
    return {name: 8 * (packed[name] + len(packer.flush())) / num_bytes for name, packer in packers.items()}


def _decoded(trained: TrainedModel, windows: Windows) -> Iterator[tuple[list[int], bytes]]:
    """Yield blocks of tokens and their text, each document decoded on its own."""
    stream, stop = windows.stream, windows.count * windows.length
    starts = stream.document_starts[: int(stream.document_starts.searchsorted(stop))].tolist()
    for start, end in zip(starts, [*starts[1:], stop], strict=True):
        before: list[int] = []
        held: list[int] = []
        for first in range(start, end, _BLOCK_TOKENS):
            block = np.empty((1, min(_BLOCK_TOKENS, end - first)), dtype=np.int64)
            stream.fill(np.array([first]), block.shape[1], block)
            ids, held = _whole_characters(trained.tokenizer, before, [*held, *block[0].tolist()])
            yield ids, trained.tokenizer.decode_after(before, ids).encode()
            before = _last_characters(trained.tokenizer, ids)
        yield held, trained.tokenizer.decode_after(before, held).encode()


def _whole_characters(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> tuple[list[int], list[int]]:
    """Return the tokens up to the last whole character, and the rest, which begins a character."""
    for stop in range(len(ids), max(0, len(ids) - _LONGEST_CHARACTER_BYTES), -1):
        if not tokenizer.decode_after(before, ids[:stop]).endswith("\ufffd"):
            return ids[:stop], ids[stop:]
    return ids, []


def _last_characters(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Return the fewest tokens at the end that are whole characters: decoders of bytes give up on any other run."""
    ends = (ids[-number:] for number in range(1, _LONGEST_CHARACTER_BYTES + 1))
    return next((end for end in ends if "\ufffd" not in tokenizer.decode(end)), [])
