"""Words that a document has in common with held-out texts, and the document without them.

Source: Brown et al. 2020, Language Models are Few-Shot Learners (GPT-3), arXiv 2005.14165, appendix C: sequences of 13
words in common are cut out with 200 characters on each side, pieces below 200 characters are discarded, and a document
that falls into more than 10 pieces is left out. Two things differ: held-out texts of 8 to 12 words match as a whole,
as in its later analysis, and a sequence that is in more than 10 documents is cut, too.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.data.quality.words import Words, word_spans

_FEWEST_WORDS = 8
_AROUND = 200
_SHORTEST_PIECE = 200
_MOST_PIECES = 10
_LONGEST_WORD = 100
"""A cut is moved to the next space within this many characters."""
_SLOTS_PER_HASH = 8


class Cut(NamedTuple):
    """What is left of a document."""

    pieces: list[str]
    num_matches: int
    """Sequences of words that are held out; with none, the only piece is the document."""
    first: str
    """The words of the first match."""


class HeldOutWords:
    """An index of the sequences of words of held-out texts, read by memory map, so that processes share it.

    It takes 8 bytes a sequence, and 8 to 16 more for a table that says which hashes are in none.
    """

    def __init__(self, folder: Path):
        """Open what `write_index` wrote."""
        self._index = {
            int(file.stem): (np.load(file, mmap_mode="r"), np.load(file.with_suffix(".table.npy"), mmap_mode="r"))
            for file in sorted(folder.glob("*.npy"))
            if file.stem.isdigit()
        }

    def cut(self, text: str) -> Cut:
        """Return the document without what it has in common."""
        words = Words(text)
        matches = [
            (start, size)
            for size, (hashes, table) in self._index.items()
            for start in _found(words, size, hashes, table)
        ]
        if not matches:
            return Cut([text], 0, "")
        spans = word_spans(text)
        places = sorted((spans[start][0], spans[start + size - 1][1]) for start, size in matches)
        first = text[places[0][0] : places[0][1]]
        pieces = _without(text, places)
        kept = [piece for piece in pieces if len(piece) >= _SHORTEST_PIECE]
        return Cut(kept if len(pieces) <= _MOST_PIECES else [], len(matches), first)


def write_index(texts: Iterable[str], num_words: int, folder: Path) -> int:
    """Write the index of held-out texts into `folder`; return the number of texts that are too short for it.

    Args:
        texts: Held-out texts.
        num_words: Words in a sequence.
        folder: An empty local folder.
    """
    found: dict[int, list[np.ndarray]] = {}
    num_short = 0
    for text in texts:
        words = Words(text)
        size = min(num_words, len(words))
        if size < min(_FEWEST_WORDS, num_words):
            num_short += 1
            continue
        found.setdefault(size, []).append(words.hashes(size))
    for size, hashes in found.items():
        unique = np.unique(np.concatenate(hashes))
        table = np.zeros(_num_slots(len(unique)), dtype=bool)
        table[_slots(unique, len(table))] = True
        np.save(folder / f"{size}.npy", unique)
        np.save(folder / f"{size}.table.npy", table)
    return num_short


def _num_slots(num_hashes: int) -> int:
    return 1 << (_SLOTS_PER_HASH * num_hashes - 1).bit_length()


def _slots(hashes: np.ndarray, num_slots: int) -> np.ndarray:
    return hashes & np.uint64(num_slots - 1)


def _found(words: Words, size: int, index: np.ndarray, table: np.ndarray) -> list[int]:
    """Return the numbers of the words at which a held-out sequence starts."""
    hashes = words.hashes(size)
    maybe = np.flatnonzero(table[_slots(hashes, len(table))])
    if len(maybe) == 0:
        return []
    places = np.searchsorted(index, hashes[maybe])
    places[places == len(index)] = 0
    return maybe[index[places] == hashes[maybe]].tolist()


def _without(text: str, places: list[tuple[int, int]]) -> list[str]:
    """Return what is left of `text` without the places and what is around them; they are sorted by their starts."""
    pieces, done = [], 0
    for start, stop in places:
        left = _to_space(text, max(0, start - _AROUND), -1)
        if left > done:
            pieces.append(text[done:left])
        done = max(done, _to_space(text, min(len(text), stop + _AROUND), 1))
    return [piece for piece in [*pieces, text[done:]] if piece]


def _to_space(text: str, place: int, step: int) -> int:
    for near in range(place, place + step * _LONGEST_WORD, step):
        if not 0 < near < len(text) or text[near].isspace():
            return min(max(near, 0), len(text))
    return place
