"""Texts to token ids, with the same result as the `tokenizers` library, but faster.

This module imports only numpy, tokenizers and tiktoken, because every tokenising process pays for the imports again.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

from modules.data import traits
from modules.data.gpt2_words import WordEncoder, merge_ranks
from modules.data.source_text import Losses, SourceText
from modules.errors import InputError


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

    Those of a tokenizer that splits text into words as GPT-2 does are encoded by tiktoken, if that gives the same
    tokens, several times as fast (tests/benchmarks/bench_prepare.py).
    """

    def __init__(self, serialised: str, dtype: np.dtype):
        """Load the text of a tokenizer.json; `dtype` is that of the tokens."""
        self._serialised = serialised
        self._dtype = dtype
        description = json.loads(serialised)
        self._has_table = traits.keeps_bytes(description)
        self._loses_nothing = traits.loses_nothing(description)
        self._is_per_character = traits.is_per_character(description)
        self._unknown_id = traits.unknown_id(description)
        ranks = merge_ranks(description) if self._has_table and traits.cuts_like_gpt2(description) else None
        self._words = None if ranks is None else WordEncoder(ranks, self._plain)

    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        """What is loaded when it is first needed, which takes a quarter of a second."""
        encoder = load_encoder(self._serialised)
        encoder.post_processor = None  # a ByteLevel one moves the places of tokens
        return encoder

    @cached_property
    def _source(self) -> SourceText:
        return SourceText(self._encoder, self._unknown_id)

    def _plain(self, texts: list[str]) -> list[list[int]]:
        return [encoded.ids for encoded in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]

    def encode(self, passages: Sequence[Passage]) -> Encoded:
        """Return the tokens of all passages.

        Raises:
            CannotEncodeError: A text holds what the tokenizer has no token for.
        """
        if self._words is not None and not any(passage.lead or passage.trail for passage in passages):
            tokens, counts = self._words([passage.text for passage in passages])
            return Encoded(tokens.astype(self._dtype), counts, None, Losses())
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
