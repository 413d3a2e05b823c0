"""Texts to token ids, with the same result as the `tokenizers` library, but faster.

This module imports only numpy and tokenizers, because every tokenising process pays for the imports again.
"""

import json
import re
import struct
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple
from unicodedata import category, ucd_3_2_0

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

from modules.data import traits
from modules.data.source_text import Losses, SourceText
from modules.errors import InputError

_ASCII_OTHERS = r"!-/:-@\[-`{-~\x00-\x08\x0e-\x1f\x7f"
_WORD = r"[{0}]+| [{0}]+|'(?:[stmd]|re|ve|ll)| ?[{1}]+| ?[{2}]+|\s+(?!\S)|\s+"
"""Pattern by which GPT-2 and every byte-level BPE of `tokenizers` split text before merging.

The most frequent cases come first, which makes it faster by a sixth and changes nothing, since none of them can match
where one before it does. Source: `self.pat` in openai/gpt-2, src/encoder.py.
"""
ASCII_WORD = re.compile(_WORD.format("A-Za-z", "0-9", _ASCII_OTHERS), re.ASCII)
_VISIBLE = r"[^\x00-\x20\x7f-\xa0\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]"
GAP = re.compile(rf"(?<={_VISIBLE}) (?={_VISIBLE})")
"""A single space between characters that no library takes for spaces, where a word always starts."""
CACHE_CHARS = 2**24
_ALPHABET = dict(enumerate(traits.byte_alphabet()))


class Passage(NamedTuple):
    """A text to encode."""

    text: str
    lead: str = ""
    """Text just before it, which is encoded with it so that its tokens are those of the whole document."""
    num_lead_tokens: int = 0
    """Tokens of `lead`, which are dropped."""
    trail: str = ""
    """Text just after it, as `lead`."""
    num_trail_tokens: int = 0
    counts_bytes: bool = False
    """Whether the bytes that each token stands for are asked for."""


class Encoded(NamedTuple):
    """What several passages became."""

    tokens: np.ndarray
    """Tokens of all passages, concatenated."""
    counts: np.ndarray
    """int64, the number of tokens of each passage."""
    num_bytes: np.ndarray | None
    """uint32 of the shape of `tokens`, UTF-8 bytes of text that each stands for, 0 where nobody asked.

    None if the tokenizer's own table says it for every text.
    """
    losses: Losses
    """What the tokens do not give back, of the passages that can lose anything."""


class CannotEncodeError(InputError):
    """A tokenizer has no tokens for a text; the message begins with the reason."""


def load_encoder(serialised: str) -> tokenizers.Tokenizer:
    """Return a tokenizer that encodes special tokens in text as ordinary text.

    The file format lacks that setting, and it does not reach tokens that the model itself spells, such as the piece
    `</s>` of a Unigram model: those are cut after their first character before the model sees them.
    """
    encoder = tokenizers.Tokenizer.from_str(serialised)
    encoder.encode_special_tokens = True
    added = encoder.get_added_tokens_decoder().items()
    long = [(token.content, number) for number, token in added if token.special and len(token.content) > 1]
    spelt = [
        re.escape(name[0]) + f"(?={re.escape(name[1:])})" for name, number in long if spells(encoder, name, number)
    ]
    if spelt:
        cut = pre_tokenizers.Split(Regex("|".join(spelt)), "isolated")
        before = encoder.pre_tokenizer
        encoder.pre_tokenizer = pre_tokenizers.Sequence([before, cut]) if before else cut
    return encoder


def spells(encoder: tokenizers.Tokenizer, name: str, number: int) -> bool:
    """Return whether the text `name` is encoded as the token of that name."""
    for text in (name, f"a {name} a", f"a{name}a"):
        try:
            if number in encoder.encode(text, add_special_tokens=False).ids:
                return True
        except Exception:  # noqa: S112  # `tokenizers` raises a bare Exception for a letter without a token
            continue
    return False


class TextEncoder:
    """Encoder of many texts.

    Words repeat: if a tokenizer splits text into words as GPT-2 does, each distinct word is encoded once by
    `tokenizers` and then looked up. On English text and code that is three times as fast as `tokenizers` alone
    (tests/benchmarks/bench_prepare.py). Rare characters are passed to `tokenizers` together with the text around them,
    because libraries disagree on what is a letter.
    """

    def __init__(self, serialised: str, dtype: np.dtype):
        """Load the text of a tokenizer.json; `dtype` is that of the tokens."""
        self._encoder = load_encoder(serialised)
        self._encoder.post_processor = None  # a ByteLevel one moves the places of tokens
        self._dtype = dtype
        description = json.loads(serialised)
        self._has_table = traits.keeps_bytes(description)
        self._loses_nothing = traits.loses_nothing(description)
        self._is_per_character = traits.is_per_character(description)
        self._source = SourceText(self._encoder, traits.unknown_id(description))
        self._cut: Callable[[str], list[str]] | None = words if traits.cuts_like_gpt2(description) else None
        self.cache = _Words(self._encoder, dtype)
        """Tokens of the words encoded so far; emptied when their characters exceed `CACHE_CHARS`."""

    def encode(self, passages: Sequence[Passage]) -> Encoded:
        """Return the tokens of all passages.

        Raises:
            CannotEncodeError: A text holds what the tokenizer has no token for.
        """
        if self._has_table and self._cut is not None and not any(passage.lead or passage.trail for passage in passages):
            encoded = [self._encode_words(self._cut(passage.text)) for passage in passages]
            counts = np.array([len(part) for part in encoded], dtype=np.int64) // self._dtype.itemsize
            return Encoded(np.frombuffer(b"".join(encoded), dtype=self._dtype), counts, None, Losses())
        try:
            encoded = [self._encode_passage(passage) for passage in passages]
        except Exception as error:  # `tokenizers` raises a bare Exception
            raise CannotEncodeError(str(error)) from error
        ids, num_bytes, losses = zip(*encoded, strict=True)
        return Encoded(
            np.concatenate(ids).astype(self._dtype),
            np.array([len(part) for part in ids], dtype=np.int64),
            None if self._has_table else np.concatenate(num_bytes).astype(np.uint32),
            sum(losses, Losses()),
        )

    def _encode_passage(self, passage: Passage) -> tuple[np.ndarray, np.ndarray, Losses]:
        """Return the tokens of a passage, the bytes that each stands for, and what is lost."""
        text = passage.lead + passage.text + passage.trail
        looks = (passage.counts_bytes and not self._has_table) or not self._loses_nothing
        if not looks or self._is_per_character:
            (encoding,) = self._encoder.encode_batch_fast([text], add_special_tokens=False)
        else:
            encoding = self._encoder.encode(text, add_special_tokens=False)
        kept = slice(passage.num_lead_tokens, len(encoding.ids) - passage.num_trail_tokens)
        ids = np.array(encoding.ids[kept], dtype=np.int64)
        if not looks:
            return ids, np.zeros(len(ids), dtype=np.int64), Losses()
        offsets = self._offsets(encoding, passage, kept)
        num_bytes = self._source.num_bytes(passage.text, offsets) if passage.counts_bytes else np.zeros(len(ids))
        losses = Losses() if self._loses_nothing else self._source.losses(passage.text, ids, offsets)
        return ids, num_bytes, losses

    def _offsets(self, encoding: tokenizers.Encoding, passage: Passage, kept: slice) -> np.ndarray:
        """Return the place of each token in a passage's own text, int64 [n, 2]."""
        if self._is_per_character:
            return np.arange(len(passage.text))[:, None] + np.array([0, 1])
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[kept]
        return np.clip(offsets - len(passage.lead), 0, len(passage.text))

    def _encode_words(self, text_words: list[str]) -> bytes:
        if self.cache.num_chars > CACHE_CHARS:
            self.cache.clear()
            self.cache.num_chars = 0
        return b"".join(map(self.cache.__getitem__, text_words))


class _Words(dict[str, bytes]):
    """Tokens of words; those of a new word are found when it is asked for, faster than if new ones were looked for."""

    def __init__(self, encoder: tokenizers.Tokenizer, dtype: np.dtype):
        self.num_chars = 0
        self._encoder = encoder
        self._model = encoder.model
        self._letter = "H" if dtype.itemsize == 2 else "I"
        # a cut that `load_encoder` has added must be made
        self._only_merges = isinstance(encoder.pre_tokenizer, pre_tokenizers.ByteLevel)

    def __missing__(self, word: str) -> bytes:
        if self._only_merges and (word.isascii() or not patterns().unknown.search(word)):
            # one word, so nothing is left to do but to merge
            spelt = word if word.isascii() else word.encode().decode("latin-1")
            ids = [token.id for token in self._model.tokenize(spelt.translate(_ALPHABET))]
        else:
            ids = self._encoder.encode(word, add_special_tokens=False).ids
        found = self[word] = struct.pack(f"<{len(ids)}{self._letter}", *ids)
        self.num_chars += len(word)
        return found


class Patterns(NamedTuple):
    """How text beyond ASCII is split."""

    word: re.Pattern[str]
    """As ASCII_WORD, for all known characters."""
    unknown: re.Pattern[str]
    """A character of which libraries may disagree on whether it is a letter."""


@cache
def patterns() -> Patterns:
    """Return the patterns for text beyond ASCII; making them takes a twentieth of a second.

    Known are those of the first 65,536 characters that are what they were in Unicode 3.2, of 2002.
    """
    found = {"L": ["A-Za-z"], "N": ["0-9"], "O": [_ASCII_OTHERS]}
    for kind, run in groupby(range(0x80, 0x10000), key=_kind):
        if kind in found:
            codes = list(run)
            found[kind].append(rf"\u{codes[0]:04x}-\u{codes[-1]:04x}")
    letters, numbers, others = ("".join(found[kind]) for kind in "LNO")
    word = re.compile(_WORD.format(letters, numbers, others), re.ASCII)
    return Patterns(word, re.compile(rf"[^\x00-\x7f{letters}{numbers}{others}]"))


def _kind(code: int) -> str:
    """Return L for a letter, N for a number, O for a mark, sign or symbol; empty for others and what was another."""
    kinds = {"L": "L", "N": "N", "M": "O", "P": "O", "S": "O"}
    now = kinds.get(category(chr(code))[0], "")
    return now if kinds.get(ucd_3_2_0.category(chr(code))[0]) == now else ""


def words(text: str) -> list[str]:
    """Split `text` where GPT-2's pattern does, except inside the parts around characters of unknown kind."""
    if text.isascii():
        return ASCII_WORD.findall(text)
    word, unknown = patterns()
    found: list[str] = []
    start = 0
    while other := unknown.search(text, start):
        left = _last_gap(text, start, other.start())
        gap = GAP.search(text, other.end())
        right = gap.start() if gap else len(text)
        found += word.findall(text[start:left])
        found.append(text[left:right])
        start = right
    return (found + word.findall(text[start:])) if found else word.findall(text)


def _last_gap(text: str, start: int, stop: int) -> int:
    space = text.rfind(" ", start + 1, stop)
    while space > start and not GAP.match(text, space):
        space = text.rfind(" ", start + 1, space)
    return max(space, start)
