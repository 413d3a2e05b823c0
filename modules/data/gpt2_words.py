"""Text to tokens of a byte-level BPE that splits words as GPT-2 does, by `tiktoken`.

This module imports only numpy and tiktoken, because every tokenising process pays for the imports again.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain, groupby
from unicodedata import category, ucd_3_2_0

import numpy as np
import tiktoken

from modules.data.traits import Description, byte_alphabet, token_bytes

_NUM_BYTES = 256
_CUT, _END = "\x00", "\x01"
"""What is put into text: where white space is cut, and after each text. Text that has them is encoded otherwise."""
_PATTERN = r"\p{L}+| \p{L}+|'(?:[stmd]|re|ve|ll)| ?\p{N}+| ?[^\s\p{L}\p{N}\x00]+|\s+"  # _CUT stands for nothing
"""Pattern by which GPT-2 and every byte-level BPE of `tokenizers` split text before merging.

Instead of looking at what follows white space, it finds it cut already: without that, tiktoken is nearly twice as fast.
The most frequent case comes first, which changes nothing, since none of them can match where one before it does.
Source: `self.pat` in openai/gpt-2, src/encoder.py.
"""
_VISIBLE = r"[^\x00-\x20\x7f-\xa0\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]"
GAP = re.compile(rf"(?<={_VISIBLE}) (?={_VISIBLE})")
"""A single space between characters that no library takes for spaces, where a word always starts."""
_IS_SPACE = np.isin(np.arange(256), list(b" \t\n\v\f\r"))
_ENDS_SPACE = ~_IS_SPACE & (np.arange(256) != ord(_END))


class WordEncoder:
    """Encoder of many texts at once.

    Rare characters are passed to `tokenizers` together with the text around them, because libraries disagree on what is
    a letter.
    """

    def __init__(self, ranks: dict[bytes, int], encode: Callable[[list[str]], list[list[int]]]):
        """Take the tokens of `merge_ranks`, and what gives the tokens of other texts by `tokenizers`."""
        self._end = ranks[_END.encode()]
        merged = {token: rank for token, rank in ranks.items() if rank != self._end}
        self._encoding = tiktoken.Encoding(
            "words", pat_str=_PATTERN, mergeable_ranks=merged, special_tokens={_END: self._end}
        )
        self._encode = encode

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of all texts, uint32 [n], and the number of each text's."""
        cut = [stretches(text) for text in texts]
        known = self._known([stretch for parts in cut for stretch in parts[::2]])
        unknown = [stretch for parts in cut for stretch in parts[1::2]]
        if not unknown:
            return np.concatenate(known), np.array([len(ids) for ids in known])
        others = iter([np.array(ids, dtype=np.uint32) for ids in self._encode(unknown)])
        found = iter(known)
        parts = [[next(others if place % 2 else found) for place in range(len(parts))] for parts in cut]
        return np.concatenate(list(chain.from_iterable(parts))), np.array([sum(map(len, ids)) for ids in parts])

    def _known(self, texts: list[str]) -> list[np.ndarray]:
        """Return the tokens of texts of known characters.

        tiktoken gives an array, which spares a list of Python's numbers, only where it looks for special tokens. With
        none it would look between all characters, so what ends a text is one.
        """
        text = _with_cuts(_END.join([*texts, ""]))
        tokens = self._encoding.encode_to_numpy(text, allowed_special={_END}, disallowed_special=())
        ends = np.flatnonzero(tokens == self._end).tolist()
        return [tokens[start:stop] for start, stop in zip([0, *(end + 1 for end in ends)], ends, strict=False)]


def _with_cuts(text: str) -> str:
    """Cut white space where GPT-2 does: before its last character, if anything follows in the same text."""
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    is_space = _IS_SPACE[data]
    last = np.flatnonzero(is_space[:-2] & is_space[1:-1] & _ENDS_SPACE[data[2:]]) + 1
    return np.insert(data, last, ord(_CUT)).tobytes().decode()


def stretches(text: str) -> list[str]:
    """Cut a text into stretches of known characters and such around others, in turn; the first and last are known."""
    if text.isascii() and _CUT not in text and _END not in text:
        return [text]
    unknown = unknown_character()
    found: list[str] = []
    start = 0
    while other := unknown.search(text, start):
        left = _last_gap(text, start, other.start())
        gap = GAP.search(text, other.end())
        right = gap.start() if gap else len(text)
        found += text[start:left], text[left:right]
        start = right
    return [*found, text[start:]]


def _last_gap(text: str, start: int, stop: int) -> int:
    space = text.rfind(" ", start + 1, stop)
    while space > start and not GAP.match(text, space):
        space = text.rfind(" ", start + 1, space)
    return max(space, start)


@cache
def unknown_character() -> re.Pattern[str]:
    """Return the pattern of a character of which libraries may disagree on whether it is a letter.

    Known are those of the first 65,536 characters that are what they were in Unicode 3.2, of 2002. Making it takes a
    twentieth of a second.
    """
    runs = (list(codes) for is_known, codes in groupby(range(0x80, 0x10000), key=_is_known) if is_known)
    return re.compile(r"[^\x02-\x7f" + "".join(rf"\u{codes[0]:04x}-\u{codes[-1]:04x}" for codes in runs) + "]")


def _is_known(code: int) -> bool:
    """Return whether a character is and always was a letter, a number, or visible or of format but no space."""
    kinds = {"L": "L", "N": "N", "M": "O", "P": "O", "S": "O", "Cf": "O"}
    now, then = (category(chr(code)), ucd_3_2_0.category(chr(code)))
    return (kind := kinds.get(now, kinds.get(now[0]))) is not None and kinds.get(then, kinds.get(then[0])) == kind


def merge_ranks(description: Description) -> dict[bytes, int] | None:
    """Return the bytes and the id of each token; None if tiktoken might merge otherwise than the file says.

    A file lists the pairs that are merged, while tiktoken merges any two tokens that spell a third one. That is the
    same if every token is what its own text is merged to: the pairs that meet are then those of the file, since as long
    as nothing is merged across the ends of a stretch of text, it is merged as if it stood alone.

    Args:
        description: A tokenizer.json whose tokens are the bytes that they spell (`traits.keeps_bytes`).
    """
    model = description["model"]
    vocab, merges = model["vocab"], model["merges"]
    if model.get("dropout") or model.get("ignore_merges") or not merges:
        return None
    names = byte_alphabet() + list(map("".join, merges))
    places = dict(zip(names, range(len(names)), strict=True))
    parts = list(chain.from_iterable(merges))
    if len(places) < len(names) or not places.keys() >= set(parts):
        return None
    ids = list(map(vocab.__getitem__, names))
    if not {token["id"] for token in description["added_tokens"]}.isdisjoint(ids):
        return None
    pairs = np.fromiter(map(places.__getitem__, parts), np.int64).reshape(-1, 2)
    if np.any(np.diff(ids[_NUM_BYTES:]) <= 0) or not _merge_to_themselves(pairs):
        return None
    return dict(zip(map(token_bytes, names), ids, strict=True))


def _merge_to_themselves(pairs: np.ndarray) -> bool:
    """Return whether each pair is what its text has become when it is merged.

    A pair is not if a token at the end of its left part and one at the beginning of its right part were merged before.
    These are followed back to single bytes: of two neighbours, the one that was made last is taken apart. The same walk
    is `is_valid_token_pair` in the crate `bpe` of github/rust-gems.

    Args:
        pairs: int64 [n, 2], what makes token 256 + i; those below 256 are the bytes.
    """
    numbers = _NUM_BYTES + np.arange(len(pairs))
    if np.any(pairs >= numbers[:, None]):
        return False
    num_tokens = _NUM_BYTES + len(pairs)
    parts = np.concatenate([np.zeros((_NUM_BYTES, 2), dtype=pairs.dtype), pairs])
    keys = pairs[:, 0] * num_tokens + pairs[:, 1]
    order = np.argsort(keys)
    left, right, before = pairs[:, 0], pairs[:, 1], numbers
    while True:
        wanted = left * num_tokens + right
        found = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
        if np.any((keys[found] == wanted) & (numbers[found] < before)):
            return False
        made = np.maximum(left, right) >= _NUM_BYTES
        left, right = left[made], right[made]
        if not len(left):
            return True
        of_left = left > right  # of pairs that are merged at once, the left one comes first
        before = np.where(of_left, left, right + 1)
        left, right = np.where(of_left, parts[left, 1], left), np.where(of_left, right, parts[right, 0])
