"""The order of the windows of a large text: at any time they come from one group of blocks, and the next one is known.

So a machine needs no more of the text than a few groups, however large it is.
"""

from dataclasses import dataclass

import numpy as np

from modules.data.sampler import WindowOrder, keys, permute


@dataclass(frozen=True)
class GroupSettings:
    """How the windows of a text are grouped, as data.json has it; texts without it have one group."""

    block_tokens: int
    """Most tokens in a block, which is read as one."""
    group_blocks: int
    """Blocks whose windows are mixed."""


class GroupOrder:
    """Assignment of a window to each sample, by groups; windows and their offsets are those of `WindowOrder`.

    Consecutive windows make a block. In each epoch the blocks are permuted; as many as `group_blocks` in that order
    make a group, and the windows within a group are permuted. The windows after the last whole block belong to the
    last group of every epoch.
    """

    BLOCK_STREAM = 8
    GROUP_STREAM = 9

    def __init__(self, num_tokens: int, sequence_length: int, seed: int, groups: GroupSettings) -> None:
        """Set up the order for a stream of at least sequence_length + 1 tokens."""
        self._seed = seed
        self._windows = WindowOrder(num_tokens, sequence_length, seed)
        self.num_windows = self._windows.num_windows
        """Samples in an epoch."""
        self._block_windows = max(1, groups.block_tokens // sequence_length)
        self._num_blocks = self.num_windows // self._block_windows
        self._group_blocks = groups.group_blocks
        self._group_windows = self._group_blocks * self._block_windows
        self._num_groups = max(1, -(-self._num_blocks // self._group_blocks))

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """Return the first position of each sample's window of sequence_length + 1 tokens.

        Args:
            samples: int64 [n], sample numbers from 0, without upper limit.

        Returns:
            int64 [n].
        """
        epochs, indices = np.divmod(samples, self.num_windows)
        return self._windows.positions(epochs, self._window_numbers(epochs, indices))

    def groups(self, samples: np.ndarray) -> np.ndarray:
        """Return the number of each sample's group within its epoch, int64 [n]."""
        return np.minimum(samples % self.num_windows // self._group_windows, self._num_groups - 1)

    def _window_numbers(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        groups = self.groups(indices)
        within = self._permuted_within(epochs, groups, indices - groups * self._group_windows)
        slots, offsets = np.divmod(within, self._block_windows)
        places = groups * self._group_blocks + slots
        in_block = places < self._num_blocks
        windows = places * self._block_windows + offsets  # those after the last whole block stay where they are
        if in_block.any():
            key = keys(self._seed, epochs[in_block], self.BLOCK_STREAM)
            blocks = permute(places[in_block], self._num_blocks, key)
            windows[in_block] = blocks * self._block_windows + offsets[in_block]
        return windows

    def _permuted_within(self, epochs: np.ndarray, groups: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Return the place of each sample in its group; the last group has a size of its own."""
        key = keys(self._seed, epochs * self._num_groups + groups, self.GROUP_STREAM)
        last = self._num_groups - 1
        permuted = np.empty_like(indices)
        for chosen, size in (
            (groups < last, self._group_windows),
            (groups == last, self.num_windows - last * self._group_windows),
        ):
            if chosen.any():
                permuted[chosen] = permute(indices[chosen], size, key[chosen])
        return permuted


Order = WindowOrder | GroupOrder
"""Which window of a text each sample is."""
