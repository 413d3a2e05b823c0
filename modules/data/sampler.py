"""The order of the samples, as a function of the seed and the sample's number, without a table or a state."""

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, the increment of SplitMix64."""
FEISTEL_ROUNDS = 8
MIN_DOMAIN_BITS = 6


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values one to one, so that each output bit depends on each input bit.

    Source: the output function of SplitMix64 (Steele, Lea and Flood 2014; constants: Stafford's variant 13).
    """
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def keys(seed: int, numbers: np.ndarray, stream: int) -> np.ndarray:
    """Return a uint64 key for each number, different for each seed and stream.

    Args:
        seed: 0 to 2^63.
        numbers: int64, any shape, not negative.
        stream: Small number that identifies the purpose of the keys.

    Returns:
        uint64 of the shape of `numbers`.
    """
    base = mix(np.array([(seed + int(GAMMA) * (stream + 1)) % 2**64], dtype=np.uint64))
    return mix(base + GAMMA * (numbers.astype(np.uint64) + np.uint64(1)))


def permute(index: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """Map 0 … size-1 one to one onto itself, in an order that looks random and differs for each key.

    A Feistel network over the smallest sufficient number of bits is applied again while its result is out of range
    (cycle walking: Black and Rogaway 2002). This takes fewer than two passes on average if `size` is above 32; smaller
    sizes take more, because the network has MIN_DOMAIN_BITS bits at least.

    Args:
        index: int64 [n], 0 <= index < size.
        size: At least 1.
        key: 0 to 2^64, or uint64 [n] with a key for each index.

    Returns:
        int64 [n].
    """
    num_bits = max(MIN_DOMAIN_BITS, (size - 1).bit_length())
    round_keys = _round_keys(np.broadcast_to(np.asarray(key, dtype=np.uint64), index.shape))
    values = _feistel(index.astype(np.uint64), num_bits, round_keys)
    outside = np.flatnonzero(values >= size)
    while len(outside):
        values[outside] = _feistel(values[outside], num_bits, round_keys[:, outside])
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _round_keys(key: np.ndarray) -> np.ndarray:
    """Return uint64 [FEISTEL_ROUNDS, n] from uint64 [n]."""
    rounds = np.arange(1, FEISTEL_ROUNDS + 1, dtype=np.uint64)[:, None]
    return mix(key + GAMMA * rounds)


def _feistel(values: np.ndarray, num_bits: int, round_keys: np.ndarray) -> np.ndarray:
    """Apply the network once. The halves may differ by one bit; each is changed in turn by a hash of the other."""
    low_bits = np.uint64(num_bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(num_bits - num_bits // 2)) - np.uint64(1)
    low, high = values & low_mask, values >> low_bits
    for number in range(0, FEISTEL_ROUNDS, 2):
        high = high ^ (mix(low + round_keys[number]) & high_mask)
        low = low ^ (mix(high + round_keys[number + 1]) & low_mask)
    return (high << low_bits) | low


class WindowOrder:
    """Assignment of a window of the token stream to each sample.

    Sample n belongs to epoch n // num_windows and is that epoch's window number permute(n % num_windows). Each epoch
    shifts all windows by its own offset, as far as the text allows (one to two windows), so that epochs cut the text at
    different positions and reach the tokens at its ends.
    """

    ORDER_STREAM = 1
    OFFSET_STREAM = 2

    def __init__(self, num_tokens: int, sequence_length: int, seed: int):
        """Set up the order for a stream of at least sequence_length + 1 tokens."""
        self._length = sequence_length
        self._seed = seed
        self.num_windows = max(1, (num_tokens - sequence_length) // sequence_length)
        """Samples in an epoch."""
        self._num_offsets = num_tokens - self.num_windows * sequence_length

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """Return the first position of each sample's window of sequence_length + 1 tokens.

        Args:
            samples: int64 [n], sample numbers from 0, without upper limit.

        Returns:
            int64 [n].
        """
        epochs, indices = np.divmod(samples, self.num_windows)
        windows = permute(indices, self.num_windows, keys(self._seed, epochs, self.ORDER_STREAM))
        return self.positions(epochs, windows)

    def positions(self, epochs: np.ndarray, windows: np.ndarray) -> np.ndarray:
        """Return the first position of window number `windows`, from 0 to num_windows, in each epoch; int64 [n]."""
        offsets = keys(self._seed, epochs, self.OFFSET_STREAM) % np.uint64(self._num_offsets)
        return windows * self._length + offsets.astype(np.int64)
