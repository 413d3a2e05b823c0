"""Words of a text for comparing texts, as lower-case runs of letters and digits; and hashes of several in a row.

A character of Chinese or Japanese is a word of its own, since nothing stands between words there.
"""

import re

import numpy as np
import xxhash

_EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W{_EAST_ASIAN}]+")
_SPACE = 32


class Words:
    """The words of a text, joined by spaces as UTF-8."""

    def __init__(self, text: str):
        found = _WORD.findall(text)
        self._joined = " ".join(found).lower().encode()
        spaces = np.flatnonzero(np.frombuffer(self._joined, dtype=np.uint8) == _SPACE)
        self._starts = np.concatenate(([0], spaces + 1)).tolist() if found else []
        self._stops = np.concatenate((spaces, [len(self._joined)])).tolist() if found else []

    def __len__(self) -> int:
        return len(self._starts)

    def sequences(self, size: int) -> list[bytes]:
        """Return every `size` words in a row."""
        joined = self._joined
        return [joined[start:stop] for start, stop in zip(self._starts, self._stops[size - 1 :], strict=False)]

    def hashes(self, size: int) -> np.ndarray:
        """Return a hash of every `size` words in a row, uint64."""
        sequences = self.sequences(size)
        return np.fromiter(map(xxhash.xxh3_64_intdigest, sequences), dtype=np.uint64, count=len(sequences))


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return where each word of `Words(text)` starts and stops in `text`."""
    return [found.span() for found in _WORD.finditer(text)]
