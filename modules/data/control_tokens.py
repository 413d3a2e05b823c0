"""Text in which a template has written control tokens, and others have written what only looks like them."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

from modules.data import traits
from modules.data.encoding import CannotEncodeError
from modules.errors import InputError


class ControlEncoder:
    """Encodes text with its control tokens, unlike `Tokenizer.encode`.

    What must stay text is shielded first: a marker, a character that stands nowhere else, is put into each place where
    a control token would be found. `tokenizers` looks for them before anything else, so none is found there, and the
    marker is taken out before the model sees the text. Where it looks is not guessed: it is asked, so that what a
    normalizer turns into a control token, or a model spells as one, is found, too.
    """

    def __init__(self, serialised: str):
        """Load the text of a tokenizer.json."""
        self._serialised = serialised
        self._encoder = tokenizers.Tokenizer.from_str(serialised)
        self._encoder.post_processor = None  # a ByteLevel one moves the places of tokens
        self._cutting: dict[str, tokenizers.Tokenizer] = {}
        added = self._encoder.get_added_tokens_decoder().items()
        self.special = frozenset(number for number, token in added if token.special)
        """Ids of the special tokens."""
        self.borders = frozenset(number for number, token in added if token.special and not token.normalized)
        """Those of them that are found before anything else, so that no other token reaches over them."""
        self._unknown = traits.unknown_id(json.loads(serialised))
        self.others = {number: token.content for number, token in added if not token.special}
        """Names of the added tokens that are not special, such as Qwen 3's `<think>`, by id."""

    def encode(self, text: str, marker: str | None = None) -> list[int]:
        """Return the token ids of a text, which may hold markers, as `transformers` does if it holds none."""
        return self.encoding(text, marker).ids

    def encoding(self, text: str, marker: str | None) -> tokenizers.Encoding:
        """As `encode`, but with the place of each token in the text.

        Raises:
            CannotEncodeError: The text holds what the tokenizer has no token for.
        """
        encoder = self._without(marker) if marker is not None and marker in text else self._encoder
        try:
            return encoder.encode(text, add_special_tokens=False)
        except Exception as error:  # `tokenizers` raises a bare Exception
            raise CannotEncodeError(str(error)) from error

    def shielded(self, value: Any, control: Collection[int], marker: str) -> Any:
        """Return a text with markers such that none of it is encoded as one of the tokens `control`.

        Of a list or a dict, all texts within it are shielded, but for the dict's keys.

        Raises:
            InputError: There is no way to.
        """
        if isinstance(value, str):
            return self._shielded_text(value, control, marker)
        if isinstance(value, Mapping):
            return {key: self.shielded(item, control, marker) for key, item in value.items()}
        return [self.shielded(item, control, marker) for item in value] if isinstance(value, list | tuple) else value

    def _shielded_text(self, text: str, control: Collection[int], marker: str) -> str:
        spans = self._spans(text, control, None)
        if not spans:
            return text
        for everywhere in (False, True):
            made = _marked(text, spans, marker, everywhere)
            if not self._spans(made, control, marker):
                return made
        start, stop = spans[0]
        raise InputError(f"messages: {text[start:stop]!r} is a control token of the model and no text; leave it out")

    def _spans(self, text: str, control: Collection[int], marker: str | None) -> list[tuple[int, int]]:
        """Return where in a text the tokens `control` are, as first character and the one after the last."""
        encoding = self.encoding(text, marker)
        found = [place for place in zip(encoding.ids, encoding.offsets, strict=True) if place[0] in control]
        name = None if self._unknown is None else self._encoder.id_to_token(self._unknown)
        # ordinary text, too, becomes the token for what has no other
        return [span for number, span in found if number != self._unknown or str(name) in text[slice(*span)]]

    def _without(self, marker: str) -> tokenizers.Tokenizer:
        """Return the tokenizer that drops the marker once it has looked for control tokens."""
        if marker not in self._cutting:
            made = tokenizers.Tokenizer.from_str(self._serialised)
            made.post_processor = None
            before: Any = made.pre_tokenizer
            patterns = marker if before is None else f"{marker}|{traits.in_byte_alphabet(marker)}"
            cut = pre_tokenizers.Split(Regex(patterns), "removed")
            made.pre_tokenizer = cut if before is None else pre_tokenizers.Sequence([before, cut])
            self._cutting[marker] = made
        return self._cutting[marker]


def _marked(text: str, spans: list[tuple[int, int]], marker: str, everywhere: bool) -> str:
    """Return the text with a marker after the first visible character of each span, or after each of its characters."""
    places: set[int] = set()
    for start, stop in spans:
        first = start + len(text[start:stop]) - len(text[start:stop].lstrip())
        places.update(range(start + 1, stop + 1) if everywhere else [first + 1])
    return "".join((marker if place in places else "") + character for place, character in enumerate(text))
