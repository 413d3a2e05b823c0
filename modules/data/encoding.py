"""Texts to token numbers, fast, and exactly as the `tokenizers` library does it.

It imports nothing but numpy and tokenizers: every process that tokenises pays for the imports once more.
"""

import json
import re
from collections.abc import Callable

import numpy as np
import tokenizers

ASCII_WORD = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
"""How GPT-2 and every byte-level BPE of `tokenizers` cut ASCII text before merging.

Source: `self.pat` in openai/gpt-2, src/encoder.py.
"""
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
ASCII_GAP = re.compile(r"(?<=[!-~]) (?=[!-~])")
"""A single space between visible ASCII characters, where a word always starts."""
CACHE_CHARS = 2**24


def load_encoder(serialised: str) -> tokenizers.Tokenizer:
    """A tokenizer that takes special tokens in text for plain letters; the file format does not keep that choice."""
    encoder = tokenizers.Tokenizer.from_str(serialised)
    encoder.encode_special_tokens = True
    return encoder


class TextEncoder:
    """Encodes many texts.

    Words repeat: where a tokenizer cuts text into words as GPT-2 does, each distinct word is encoded once by
    `tokenizers` and then looked up. On English text and code that is three times as fast as `tokenizers` alone
    (tests/benchmarks/bench_prepare.py). Characters other than ASCII go to `tokenizers` together with their neighbours,
    since what counts as a letter differs between libraries.
    """

    def __init__(self, serialised: str, dtype: np.dtype):
        """Takes the text of a tokenizer.json and the dtype of the tokens."""
        self._encoder = load_encoder(serialised)
        self._dtype = dtype
        self._cut: Callable[[str], list[str]] = words if _cuts_like_gpt2(serialised) else lambda text: [text]
        self._cache: dict[str, bytes] = {}
        self._cached_chars = 0

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all texts, one after the other, and how many each has (int64)."""
        encoded = [self._encode_words(self._cut(text)) for text in texts]
        tokens = np.frombuffer(b"".join(encoded), dtype=self._dtype)
        return tokens, np.array([len(part) for part in encoded], dtype=np.int64) // self._dtype.itemsize

    def _encode_words(self, text_words: list[str]) -> bytes:
        if self._cached_chars > CACHE_CHARS:
            self._cache.clear()
            self._cached_chars = 0
        new = list(set(text_words).difference(self._cache))
        for word, encoding in zip(new, self._encoder.encode_batch_fast(new, add_special_tokens=False), strict=True):
            self._cache[word] = np.array(encoding.ids, dtype=self._dtype).tobytes()
            self._cached_chars += len(word)
        return b"".join(map(self._cache.__getitem__, text_words))


def words(text: str) -> list[str]:
    """Cuts `text` where GPT-2's rule cuts it, except inside the stretches around characters that are not ASCII."""
    if text.isascii():
        return ASCII_WORD.findall(text)
    found: list[str] = []
    start = 0
    while other := NOT_ASCII.search(text, start):
        left = _last_gap(text, start, other.start())
        gap = ASCII_GAP.search(text, other.end())
        right = gap.start() if gap else len(text)
        found += ASCII_WORD.findall(text[start:left])
        found.append(text[left:right])
        start = right
    return found + ASCII_WORD.findall(text[start:])


def _last_gap(text: str, start: int, stop: int) -> int:
    place = text.rfind(" ", start + 1, stop)
    while place > start and not ASCII_GAP.match(text, place):
        place = text.rfind(" ", start + 1, place)
    return max(place, start)


def _cuts_like_gpt2(serialised: str) -> bool:
    description = json.loads(serialised)
    cut = description["pre_tokenizer"] or {}
    return (
        description["normalizer"] is None
        and cut.get("type") == "ByteLevel"
        and cut["use_regex"]
        and not cut["add_prefix_space"]
        and all(token["special"] for token in description["added_tokens"])
    )
