"""Batches of packed examples, a function of (data, seed, step) that is divided among workers.

A row holds the examples of B packs without padding, one after another, sorted by length, so that attention computes
equal lengths together. N positions in a row, E examples, M targets.
"""

from collections.abc import Iterator

import numpy as np
import torch

from modules.data.batches import Batch, Share
from modules.data.example_data import ExampleSplit
from modules.data.number_files import Numbers
from modules.data.sampler import keys, permute


class PackOrder:
    """The packs of each step. Sample n is pack `permute(n % num_packs)` in the order of epoch `n // num_packs`.

    So each epoch has each pack once, and the global batch at the end of an epoch goes on into the next.
    """

    STREAM = 7

    def __init__(self, split: ExampleSplit, global_batch_size: int, seed: int) -> None:
        self._split, self._global_batch_size, self._seed = split, global_batch_size, seed

    def packs(self, step: int) -> np.ndarray:
        """Return the numbers of the packs in the global batch, int64 [global_batch_size]."""
        size = self._split.num_packs
        epochs, indices = np.divmod(step * self._global_batch_size + np.arange(self._global_batch_size), size)
        return permute(indices, size, keys(self._seed, epochs, self.STREAM))

    def step(self, sample: int) -> int:
        """Return the step in whose global batch a sample is."""
        return sample // self._global_batch_size

    def pack(self, sample: int) -> int:
        """Return the number of the pack that a sample is."""
        return int(self.packs(self.step(sample))[sample % self._global_batch_size])

    def num_tokens(self, step: int) -> int:
        """Return the number of tokens in the global batch."""
        return int(self._split.pack_tokens[self.packs(step)].sum())

    def num_targets(self, step: int) -> float:
        """Return the number of targets in the global batch, or the sum of their weights."""
        return self._split.pack_targets[self.packs(step)].sum().item()


class ExampleBatches:
    """Training batches of one worker; the global batch of a step is the same for every division among workers."""

    def __init__(self, split: ExampleSplit, share: Share, seed: int) -> None:
        self._maker = RowMaker(split)
        self._order = PackOrder(split, share.global_batch_size, seed)
        self._places = share.places()

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield this worker's micro-batches of `step`, in order, at a cost that does not grow with the step."""
        for packs in self._order.packs(step)[self._places]:
            yield self._maker.make(packs, step)

    def from_step(self, first_step: int) -> Iterator[Batch]:
        """Yield the micro-batches of `first_step` and all steps after it, without end."""
        step = first_step
        while True:
            yield from self.micro_batches(step)
            step += 1


class ExampleValidationBatches:
    """Every held-out pack once, in order, up to a number of global batches.

    Every worker has the same number of micro-batches, because under ZeRO-3 all compute together. What is left for the
    last of them is divided evenly; a worker for which nothing is left repeats a pack in a batch with `is_repeat`, whose
    sums are not counted.
    """

    def __init__(self, split: ExampleSplit, share: Share, num_batches: int) -> None:
        """Set up at most `num_batches` global batches of a split that is not empty for one worker's share."""
        self._maker, self._share = RowMaker(split), share
        self._num_packs = min(split.num_packs, num_batches * share.global_batch_size)

    def __len__(self) -> int:
        """Return the number of this worker's micro-batches."""
        return -(-self._num_packs // (self._share.world_size * self._share.micro_batch_size))

    def __iter__(self) -> Iterator[Batch]:
        size = self._share.world_size * self._share.micro_batch_size
        for number in range(len(self)):
            packs = np.arange(number * size, min((number + 1) * size, self._num_packs))
            mine = np.array_split(packs, self._share.world_size)[self._share.rank]
            yield {
                **self._maker.make(mine if len(mine) else packs[:1], number),
                "is_repeat": not len(mine),
            }


class RowMaker:
    """Maker of rows from given packs."""

    def __init__(self, split: ExampleSplit) -> None:
        self._split = split

    def make(self, packs: np.ndarray, step: int) -> Batch:
        """Return the row of these packs.

        Returns:
            `input_ids` int64 [1, N]; `lengths`, the tokens of each example in the row, and `offsets` int32 [E + 1], the
            first token of each, and N; `sample_ids` int64 [B], the
            numbers of the packs; `step`; where they are known `num_bytes`, the bytes of text for which the targets
            stand. For a classification `labels` int64 [E]. Otherwise `targets` int64 [M], and `target_positions` int64
            [M] of the hidden states that predict them; the last token of each example is left out of the row, because
            nothing follows it that it could predict.
        """
        split, examples = self._split, self.examples(packs)
        first, end = split.offsets[examples], split.offsets[examples + 1]
        batch: Batch = {"sample_ids": torch.from_numpy(packs), "step": step}
        if split.num_bytes is not None:
            batch["num_bytes"] = int(split.num_bytes[examples].sum())
        if split.labels is not None:
            labels = torch.from_numpy(split.labels[examples].astype(np.int64))
            return {**batch, **self._inputs(first, end), "labels": labels}
        assert split.is_target is not None
        positions = np.flatnonzero(_joined(split.is_target, first + 1, end))
        targets = _joined(self._split.tokens, first + 1, end)[positions].astype(np.int64)
        return {
            **batch,
            **self._inputs(first, end - 1),
            "target_positions": torch.from_numpy(positions),
            "targets": torch.from_numpy(targets),
        }

    def examples(self, packs: np.ndarray) -> np.ndarray:
        """Return the numbers of the examples in the row of these packs, in its order, int64 [E]."""
        split = self._split
        examples = np.concatenate([split.order[split.starts[pack] : split.starts[pack + 1]] for pack in packs])
        lengths = split.offsets[examples + 1] - split.offsets[examples]
        return examples[np.argsort(lengths, kind="stable")]

    def _inputs(self, first: np.ndarray, end: np.ndarray) -> Batch:
        ids = _joined(self._split.tokens, first, end).astype(np.int64)
        lengths = end - first
        offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
        return {
            "input_ids": torch.from_numpy(ids)[None],
            "lengths": lengths.tolist(),
            "offsets": torch.from_numpy(offsets),
        }


def _joined(values: Numbers, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the ranges [first, end) of the values, one after another."""
    return np.concatenate([values[a:b] for a, b in zip(first.tolist(), end.tolist(), strict=True)])
