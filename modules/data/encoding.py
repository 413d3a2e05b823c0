"""Texts to token ids, with the same result as the `tokenizers` library, but faster.

This module imports only numpy and tokenizers, because every tokenising process pays for the imports again.
"""

import json
import re
from collections.abc import Callable

import numpy as np
import tokenizers

ASCII_WORD = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
"""Pattern by which GPT-2 and every byte-level BPE of `tokenizers` split ASCII text before merging.

Source: `self.pat` in openai/gpt-2, src/encoder.py.
"""
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
ASCII_GAP = re.compile(r"(?<=[!-~]) (?=[!-~])")
"""A single space between visible ASCII characters, where a word always starts."""
CACHE_CHARS = 2**24


def load_encoder(serialised: str) -> tokenizers.Tokenizer:
    """Return a tokenizer that encodes special tokens in text as ordinary text; the file format lacks that setting."""
    encoder = tokenizers.Tokenizer.from_str(serialised)
    encoder.encode_special_tokens = True
    return encoder


class TextEncoder:
    """Encoder of many texts.

    Words repeat: if a tokenizer splits text into words as GPT-2 does, each distinct word is encoded once by
    `tokenizers` and then looked up. On English text and code that is three times as fast as `tokenizers` alone
    (tests/benchmarks/bench_prepare.py). Non-ASCII characters are passed to `tokenizers` together with the text around
    them, because libraries disagree on what is a letter.
    """

    def __init__(self, serialised: str, dtype: np.dtype):
        """Load the text of a tokenizer.json; `dtype` is that of the tokens."""
        self._encoder = load_encoder(serialised)
        self._dtype = dtype
        self._cut: Callable[[str], list[str]] = words if _cuts_like_gpt2(serialised) else lambda text: [text]
        self.cache: dict[str, bytes] = {}
        """Tokens of the words encoded so far; emptied when their characters exceed `CACHE_CHARS`."""
        self._cached_chars = 0

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of all texts, concatenated, and the number of tokens of each text (int64)."""
        encoded = [self._encode_words(self._cut(text)) for text in texts]
        tokens = np.frombuffer(b"".join(encoded), dtype=self._dtype)
        return tokens, np.array([len(part) for part in encoded], dtype=np.int64) // self._dtype.itemsize

    def _encode_words(self, text_words: list[str]) -> bytes:
        if self._cached_chars > CACHE_CHARS:
            self.cache.clear()
            self._cached_chars = 0
        new = list(set(text_words).difference(self.cache))
        for word, encoding in zip(new, self._encoder.encode_batch_fast(new, add_special_tokens=False), strict=True):
            self.cache[word] = np.array(encoding.ids, dtype=self._dtype).tobytes()
            self._cached_chars += len(word)
        return b"".join(map(self.cache.__getitem__, text_words))


def words(text: str) -> list[str]:
    """Split `text` where GPT-2's pattern does, except inside the parts around non-ASCII characters."""
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
    space = text.rfind(" ", start + 1, stop)
    while space > start and not ASCII_GAP.match(text, space):
        space = text.rfind(" ", start + 1, space)
    return max(space, start)


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
