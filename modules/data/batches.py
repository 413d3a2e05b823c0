"""Batches of token windows, a function of (data, seed, step) that is divided among workers (CONTRIBUTING, invariant 1).

B sequences in a micro-batch, T positions, K positions that the masked objective predicts, E documents.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from modules.config import ObjectiveConfig
from modules.data.joined_stream import JoinedStream
from modules.data.masking import Masker, num_masked
from modules.data.mixture import Mixture
from modules.data.shards import TokenStream, check_length
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError

Batch = dict[str, Any]
"""A micro-batch: tensors and plain numbers by name."""
BLOCK_SAMPLES = 4096
"""Samples whose windows are computed at once, so that the permutation costs almost no time per step."""


@dataclass(frozen=True)
class Share:
    """Part of every global batch that a worker computes.

    Raises:
        InputError: The global batch is not a multiple of world_size x micro_batch_size.
    """

    global_batch_size: int
    """Samples in a step, over all workers."""
    micro_batch_size: int
    """Samples that a worker computes at once."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.world_size * self.micro_batch_size):
            raise InputError(
                f"global_batch_size {self.global_batch_size} is not divisible by {self.world_size} workers x "
                f"micro_batch_size {self.micro_batch_size}"
            )

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of this worker in a step."""
        return self.global_batch_size // (self.world_size * self.micro_batch_size)

    def places(self) -> np.ndarray:
        """Return this worker's positions in the global batch, int64 [accumulation_steps, micro_batch_size].

        Micro-batch a of rank r holds the positions from (a x world_size + r) x micro_batch_size on.
        """
        positions = np.arange(self.global_batch_size)
        return positions.reshape(-1, self.world_size, self.micro_batch_size)[:, self.rank]


@dataclass(frozen=True)
class BatchSettings:
    """Settings that decide a batch of token windows, besides text, step and share."""

    sequence_length: int
    """Tokens in a window."""
    seed: int
    """Decides the order of the windows, and the masks."""
    objective: ObjectiveConfig
    """Settings of the masking."""
    with_masked: bool = False
    """Whether batches hold the inputs and targets of the masked objective."""
    with_documents: bool = False
    """Whether attention stays within documents."""
    restarts_positions: bool = False
    """Whether positions are then counted in each document, not along the window."""

    @property
    def num_masked(self) -> int:
        """Positions that the masked objective predicts in each window."""
        return num_masked(self.objective, self.sequence_length)


class BatchMaker:
    """Maker of micro-batches from given windows."""

    def __init__(
        self,
        stream: TokenStream | JoinedStream,
        tokenizer: Tokenizer,
        settings: BatchSettings,
        counts_bytes: bool = False,
    ) -> None:
        """Set up what decides a batch besides its windows.

        Args:
            counts_bytes: Whether each batch has `num_bytes`.

        Raises:
            InputError: The stream is shorter than one sample, or masks are asked for and there is no mask token.
        """
        check_length(len(stream), settings.sequence_length)
        self._stream, self._settings, self._counts_bytes = stream, settings, counts_bytes
        self._length = settings.sequence_length
        self._masker = _masker(tokenizer, settings) if settings.with_masked else None

    def make(self, starts: np.ndarray, samples: np.ndarray, step: int) -> Batch:
        """Return one micro-batch.

        Args:
            starts: int64 [B], first position of each window of T + 1 tokens.
            samples: int64 [B], sample numbers, which decide the masks.
            step: Stored in the batch.

        Returns:
            `input_ids` and `targets` int64 [B, T], views of one [B, T + 1] copy; `sample_ids` int64 [B]; `step`; with
            masks `mlm_input_ids` int64 [B, T], `mlm_positions` and `mlm_targets` int64 [B, K]; with documents
            `lengths`, the tokens of each document in the windows, `offsets` int32 [E + 1], the first token of each, and
            `positions` int64, [T], or [B, T] where each document has its own; if asked for, `num_bytes`, the bytes of
            text for which the targets stand, not a number if they are not known.
        """
        windows = torch.empty(len(starts), self._length + 1, dtype=torch.int64)
        self._stream.fill(starts, self._length + 1, windows.numpy())
        batch: Batch = {"input_ids": windows[:, :-1], "targets": windows[:, 1:]}
        batch["sample_ids"] = torch.from_numpy(samples)
        batch["step"] = step
        document_ids = None
        if self._settings.with_documents:
            document_ids = self._stream.document_ids(starts, self._length)
            batch |= _documents(document_ids, self._settings.restarts_positions)
        if self._counts_bytes:
            num_bytes = self._stream.num_bytes(starts + 1, self._length)
            batch["num_bytes"] = math.nan if num_bytes is None else num_bytes
        if self._masker is not None:
            masked = self._masker.mask(windows.numpy()[:, :-1], samples, document_ids)
            for name, values in zip(("mlm_input_ids", "mlm_positions", "mlm_targets"), masked, strict=True):
                batch[name] = torch.from_numpy(values)
        return batch


def _documents(ids: np.ndarray, restarts_positions: bool) -> Batch:
    """Return where documents begin, and positions, for their numbers in each window, int32 [B, T]."""
    begins = np.ones(ids.shape, dtype=bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=ids.size)
    positions = np.arange(ids.shape[1])
    if restarts_positions:
        positions = (np.arange(ids.size) - np.repeat(starts, lengths)).reshape(ids.shape)
    offsets = torch.from_numpy(np.append(starts, ids.size).astype(np.int32))
    return {"lengths": lengths.tolist(), "offsets": offsets, "positions": torch.from_numpy(positions)}


def _masker(tokenizer: Tokenizer, settings: BatchSettings) -> Masker:
    if tokenizer.mask_id is None:
        raise InputError(
            "objective: the masked objective needs a mask token, and the tokenizer has none; name one in "
            "tokenizer.mask_token, or let tokenizer.added_tokens=mask add one"
        )
    return Masker(settings.objective, settings.seed, tokenizer.special_ids, tokenizer.mask_id, tokenizer.vocab_size)


class Batches:
    """Training batches of one worker; the global batch of a step is the same for every division among workers."""

    def __init__(
        self,
        stream: TokenStream | JoinedStream,
        tokenizer: Tokenizer,
        settings: BatchSettings,
        share: Share,
        mixture: Mixture | None = None,
    ) -> None:
        """Set up the batches of token streams for one worker's share.

        Args:
            mixture: Of the streams that are joined; None for a single one.

        Raises:
            InputError: A stream is shorter than one sample.
        """
        self._maker = BatchMaker(stream, tokenizer, settings)
        self._stream = stream if isinstance(stream, JoinedStream) else JoinedStream([stream])
        self._window = settings.sequence_length + 1
        self._mixture = mixture or Mixture.of_one(self._stream.order(settings.sequence_length, settings.seed))
        self._global_batch_size, self._places = share.global_batch_size, share.places()
        self._block_steps = max(1, BLOCK_SAMPLES // self._places.size)
        self._block = -2
        self._block_starts = self._next_starts = np.empty(0, dtype=np.int64)

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield this worker's micro-batches of `step`, in order, at a cost that does not grow with the step."""
        starts = self._starts(step)
        for micro_starts, places in zip(starts, self._places, strict=True):
            yield self._maker.make(micro_starts, step * self._global_batch_size + places, step)

    def of(self, samples: np.ndarray) -> Batch:
        """Return given samples, int64 [B] and of one step, as a micro-batch; nothing else is read or fetched."""
        return self._maker.make(self._positions(samples), samples, int(samples[0]) // self._global_batch_size)

    def plan(self, samples: np.ndarray) -> None:
        """Say which samples, int64 [n], are asked for next, so that they are fetched beforehand."""
        self._stream.plan(self._positions(samples), self._window)

    def from_step(self, first_step: int) -> Iterator[Batch]:
        """Yield the micro-batches of `first_step` and all steps after it, without end."""
        step = first_step
        while True:
            yield from self.micro_batches(step)
            step += 1

    def _starts(self, step: int) -> np.ndarray:
        """Return the first position of each window of a step, int64 [accumulation_steps, B]."""
        block, within = divmod(step, self._block_steps)
        if block != self._block:
            self._block_starts = self._next_starts if block == self._block + 1 else self._starts_of(block)
            self._next_starts, self._block = self._starts_of(block + 1), block
            planned = np.concatenate([self._block_starts[within:], self._next_starts])
            self._stream.plan(planned.reshape(-1), self._window)
        return self._block_starts[within]

    def _starts_of(self, block: int) -> np.ndarray:
        steps = block * self._block_steps + np.arange(self._block_steps)
        samples = steps[:, None, None] * self._global_batch_size + self._places
        return self._positions(samples.reshape(-1)).reshape(samples.shape)

    def _positions(self, samples: np.ndarray) -> np.ndarray:
        return self._stream.positions(*self._mixture.locate(samples))


class ValidationBatches:
    """The first windows of the held-out text, in order; the masks are the same at every validation."""

    MASK_SEED_OFFSET = 1
    """Added to the seed, so that held-out sample n gets other masks than training sample n."""

    def __init__(
        self, stream: TokenStream, tokenizer: Tokenizer, settings: BatchSettings, share: Share, num_batches: int
    ) -> None:
        """Set up at most `num_batches` global batches of the held-out text for one worker's share.

        Raises:
            InputError: The stream is shorter than one sample.
        """
        settings = replace(settings, seed=settings.seed + self.MASK_SEED_OFFSET)
        self._maker = BatchMaker(stream, tokenizer, settings, counts_bytes=True)
        self._stream, self._length = stream, settings.sequence_length
        self._global_batch_size, self._places = share.global_batch_size, share.places()
        self._num_windows = (len(stream) - 1) // self._length
        self.num_batches = min(num_batches, max(1, self._num_windows // self._global_batch_size))
        """Number of full global batches; if the text has fewer windows than one, they are repeated to fill it."""

    def __len__(self) -> int:
        """Return the number of this worker's micro-batches."""
        return self.num_batches * len(self._places)

    def __iter__(self) -> Iterator[Batch]:
        samples = np.arange(self.num_batches)[:, None, None] * self._global_batch_size + self._places
        starts = samples % self._num_windows * self._length
        self._stream.plan(starts.reshape(-1), self._length + 1, with_bytes=True)
        for number in range(self.num_batches):
            for micro_starts, micro_samples in zip(starts[number], samples[number], strict=True):
                yield self._maker.make(micro_starts, micro_samples, number)
