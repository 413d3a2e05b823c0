"""Documents that are equal or similar to an earlier one.

Similar documents are found by MinHash (Broder 1997) over sequences of 5 words: two that agree in a whole band of hashes
are compared by all 128, of which the share that agrees estimates their Jaccard similarity (standard error 0.04).
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from modules.data.quality.words import Words
from modules.errors import InputError

NUM_HASHES = 128
_SHINGLE_WORDS = 5
_SHINGLES_AT_ONCE = 8192
"""Bounds memory: 4 bytes for each of them and each hash."""
_LEAST_RECALL = 0.9
"""A pair at the least similarity shares a band with at least this probability; more similar ones with a higher."""
_BLOCK_ROWS = 2**12


class Signatures:
    """MinHash of texts."""

    def __init__(self) -> None:
        """Load the library.

        Raises:
            InputError: `datasketch` is missing.
        """
        try:
            import datasketch
        except ImportError as error:
            raise InputError(
                "data.deduplicate.kind=near needs the package datasketch: pip install 'gpt-orchestrator[quality]'"
            ) from error
        self._empty: Any = datasketch.MinHash(NUM_HASHES, seed=1, hashfunc=xxhash.xxh32_intdigest, scheme="affine32")

    def of(self, words: Words) -> np.ndarray:
        """Return the signature of a text, uint32 [NUM_HASHES]; a text of fewer than 5 words is one sequence."""
        signature = self._empty.copy()
        sequences = words.sequences(min(_SHINGLE_WORDS, max(1, len(words))))
        for start in range(0, len(sequences), _SHINGLES_AT_ONCE):
            signature.update_batch(sequences[start : start + _SHINGLES_AT_ONCE])
        return signature.hashvalues


def equal_to_earlier(digests: np.ndarray) -> np.ndarray:
    """Return for each digest the number of an earlier equal one, or -1.

    Args:
        digests: uint64 [n, 2].

    Returns:
        int64 [n]; it and what is needed meanwhile take 49 bytes a digest.
    """
    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    same = np.all(digests[order[1:]] == digests[order[:-1]], axis=1)
    return _first_of_group(order, same)


def similar_to_earlier(signatures: np.ndarray, numbers: np.ndarray, least: float) -> np.ndarray:
    """Return for each of the documents `numbers` the number of an earlier similar one among them, or -1.

    Documents are compared with the first one in the same band, which may itself be similar to an earlier one.

    Args:
        signatures: uint32 [n, NUM_HASHES], in memory or by memory map.
        numbers: int64 [m], ascending.
        least: Similarity from which on two are similar.

    Returns:
        int64 [m]; it and what is needed meanwhile take some 60 bytes a document, and 7 MB.
    """
    earlier = np.full(len(numbers), -1, dtype=np.int64)
    num_bands, num_rows = bands(least)
    for band in range(num_bands):
        keys = _band_keys(signatures, numbers, band * num_rows, (band + 1) * num_rows)
        order = np.argsort(keys, kind="stable")
        first = _first_of_group(order, keys[order[1:]] == keys[order[:-1]])
        pairs = np.flatnonzero((first >= 0) & (earlier < 0))
        for start in range(0, len(pairs), _BLOCK_ROWS):
            block = pairs[start : start + _BLOCK_ROWS]
            equal = signatures[numbers[block]] == signatures[numbers[first[block]]]
            is_similar = equal.mean(axis=1) >= least
            earlier[block[is_similar]] = numbers[first[block[is_similar]]]
    return earlier


def bands(least: float) -> tuple[int, int]:
    """Return the number of bands and of hashes in each: the longest bands that find enough of the similar pairs."""
    for num_rows in range(NUM_HASHES, 1, -1):
        num_bands = NUM_HASHES // num_rows
        if 1 - math.pow(1 - least**num_rows, num_bands) >= _LEAST_RECALL:
            return num_bands, num_rows
    return NUM_HASHES, 1


def _band_keys(signatures: np.ndarray, numbers: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return a hash of the columns from `start` to `stop` of each document, uint64."""
    keys = np.empty(len(numbers), dtype=np.uint64)
    for first in range(0, len(numbers), _BLOCK_ROWS):
        rows = np.ascontiguousarray(signatures[numbers[first : first + _BLOCK_ROWS], start:stop])
        keys[first : first + len(rows)] = [xxhash.xxh3_64_intdigest(row) for row in rows]
    return keys


def _first_of_group(order: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Return for each item the first of its group, or -1 for the first itself.

    Args:
        order: The items, sorted by group and by number within it.
        same: Whether each is of the same group as the one before it, from the second on.
    """
    first = np.full(len(order), -1, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate(([True], ~same)))
    group = np.repeat(order[starts], np.diff(np.append(starts, len(order)))) if len(order) else order
    is_later = group != order
    first[order[is_later]] = group[is_later]
    return first


def open_rows(path: Path, dtype: np.dtype, shape: tuple[int, ...] = (), mode: Literal["r", "r+"] = "r") -> np.ndarray:
    """Return the rows that a file holds, by memory map."""
    if path.stat().st_size == 0:
        return np.empty((0, *shape), dtype=dtype)
    return np.memmap(path, dtype=dtype, mode=mode).reshape(-1, *shape)
