"""Token ids to text while they arrive, each at a cost that does not grow with the text before it."""

import codecs
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Protocol

import tokenizers

from modules.data import traits

Decode = Callable[[Sequence[int]], str]


class TextStream(Protocol):
    """Text that tokens add to that of a prompt; all of it together is `Tokenizer.decode_after` of all tokens."""

    def add(self, number: int) -> str:
        """Return the text that is certain now, whatever follows; empty within a character."""
        ...

    def finish(self) -> str:
        """Return the rest of the text: no token follows."""
        ...


def text_stream(
    encoder: tokenizers.Tokenizer, decoder: traits.Description | None, decode: Decode, before: Sequence[int]
) -> TextStream:
    """Return the stream of text after the tokens `before`.

    `DecodeStream` of `tokenizers` is none such: it loses the space after a prompt under Llama 2's decoder, raises an
    error where a later byte changes earlier ones, and keeps what follows an invalid byte for ever.

    Args:
        encoder: A tokenizer.
        decoder: Its decoder, as in its tokenizer.json.
        decode: Returns the text of tokens, without special ones.
        before: Tokens of the prompt.
    """
    skipped = {number for number, token in encoder.get_added_tokens_decoder().items() if token.special}

    def name(number: int) -> str | None:
        return None if number in skipped else encoder.id_to_token(number)

    if traits.writes_bytes(decoder):
        return _ByteStream(name, before)
    return _WindowStream(name, decode, traits.joins_byte_tokens(decoder), before)


def text_after(decode: Decode, before: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text that `ids` add to that of `before`; decoded alone they may lose the space between both."""
    whole, start = decode([*before, *ids]), decode(before)
    if not whole.startswith(start):  # what follows has changed how the end before is written
        pairs = zip(start, whole, strict=False)
        start = "".join(left for left, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return whole[len(start) :]


class _ByteStream:
    """Of tokens that are written as their bytes, all in one row, as those of byte-level vocabularies are."""

    def __init__(self, name: Callable[[int], str | None], before: Sequence[int]):
        self._name = name
        # it replaces what is not UTF-8 as `tokenizers` does, and holds back an incomplete character
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._prompt_ends_within = False
        for number in before:
            self.add(number)
        self._prompt_ends_within = bool(self._decoder.getstate()[0])

    def add(self, number: int) -> str:
        token = self._name(number)
        return "" if token is None else self._after_prompt(self._decoder.decode(traits.token_bytes(token)))

    def finish(self) -> str:
        return self._after_prompt(self._decoder.decode(b"", final=True))

    def _after_prompt(self, text: str) -> str:
        """Return the text without the U+FFFD that the text of the prompt ended with, if no byte has completed it."""
        if text and self._prompt_ends_within:
            self._prompt_ends_within = False
            return text.removeprefix("\ufffd")
        return text


class _WindowStream:
    """Of tokens of which each is written by itself and by the token before it.

    Only a few tokens are decoded at a time: those that are new, and just as many before them as have any text, because
    a decoder may leave out the space at the start of what it is given. With byte fallback, tokens of bytes that
    follow each other are written together, each as U+FFFD if all of them are not UTF-8: so they are held back until
    another token comes.
    """

    def __init__(
        self, name: Callable[[int], str | None], decode: Decode, joins_byte_tokens: bool, before: Sequence[int]
    ):
        self._name, self._decode, self._joins_byte_tokens = name, decode, joins_byte_tokens
        self._before = self._end_of([number for number in before if name(number) is not None])
        self._held: list[int] = []

    def add(self, number: int) -> str:
        if self._name(number) is None:
            return ""
        self._held.append(number)
        return "" if self._is_byte(number) else self.finish()

    def finish(self) -> str:
        held, self._held = self._held, []
        text = text_after(self._decode, self._before, held)
        self._before = self._end_of([*self._before, *held])
        return text

    def _end_of(self, ids: list[int]) -> list[int]:
        """Return the fewest tokens at the end that have any text and do not begin within a row of bytes."""
        start = len(ids)
        while start > 0:
            start -= 1
            is_within = start > 0 and self._is_byte(ids[start]) and self._is_byte(ids[start - 1])
            if not is_within and self._decode(ids[start:]):
                break
        return ids[start:]

    def _is_byte(self, number: int) -> bool:
        return self._joins_byte_tokens and traits.is_byte_token(self._name(number) or "")
