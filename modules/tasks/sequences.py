"""One builder of token sequences for training, evaluation and use: parts of text become ids and targets."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from modules.data.encoding import CannotEncodeError, Passage, TextEncoder
from modules.data.source_text import Losses
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError
from modules.tasks.settings import Cut
from modules.tasks.tally import Tally
from modules.tasks.task import Example


class Part(NamedTuple):
    """A part of a sequence. Parts are encoded apart, so that no token reaches over the border of two."""

    text: str
    is_target: bool = False
    is_fixed: bool = False
    """Whether it is kept whole in a sequence that is too long, as what a prompt puts around a text."""


class _Piece(NamedTuple):
    """The tokens of a part, of which those from `start` to `stop` are kept."""

    part: Part
    ids: list[int]
    start: int
    stop: int

    @property
    def is_cut(self) -> bool:
        return self.stop - self.start < len(self.ids)


class SequenceBuilder:
    """Makes sequences of at most `sequence_length` tokens.

    They begin with the token that begins a document where the tokenizer has one, and with nothing where it has none.
    After the last target comes the token that ends a document, a target, too, also where it is the padding token.
    """

    def __init__(self, tokenizer: Tokenizer, sequence_length: int, too_long: Cut, tally: Tally):
        """Make sequences for one task.

        Args:
            tokenizer: The model's.
            sequence_length: Most tokens of a sequence.
            too_long: What becomes of a longer one.
            tally: Where it is counted.
        """
        self.tokenizer, self.sequence_length, self.tally = tokenizer, sequence_length, tally
        self.begin_ids = tokenizer.begin_ids
        self._too_long: Cut = too_long

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer.serialised(), np.dtype(np.uint32))

    @cached_property
    def _table(self) -> np.ndarray | None:
        return self.tokenizer.token_num_bytes()

    def check_end(self) -> None:
        """Refuse a tokenizer without a token that ends what is predicted.

        Raises:
            InputError: It has none.
        """
        if self.tokenizer.end_token is None:
            raise InputError(
                "model.path: its tokenizer names no token that ends a text, so a model could never learn to stop; name "
                "one as eos_token in its tokenizer_config.json"
            )

    def build(self, parts: Sequence[Part], location: str) -> Example | None:
        """Return the sequence of several parts.

        If it is too long, parts that are neither targets nor fixed are cut, the longest first, and targets only where
        that is not enough; at their right that takes the end token first.

        Args:
            parts: In order.
            location: Where the row is, for messages and counts.

        Returns:
            None if it is too long and dropped.

        Raises:
            InputError: It is too long and refused, what is fixed leaves no room, or the tokenizer cannot encode it.
        """
        pieces = [self._piece(part, location) for part in parts]
        last = max((number for number, part in enumerate(parts) if part.is_target), default=None)
        if last is not None:
            ids = [*pieces[last].ids, self.tokenizer.end_of_text_id]
            pieces[last] = pieces[last]._replace(ids=ids, stop=len(ids))
        num_tokens = len(self.begin_ids) + sum(len(piece.ids) for piece in pieces)
        if num_tokens <= self.sequence_length:
            return self._joined(pieces)
        return self._joined(self._cut(pieces, location)) if self.may_cut(num_tokens, location) else None

    def may_cut(self, num_tokens: int, location: str) -> bool:
        """Return whether a sequence that is too long is cut, and count it; otherwise it is dropped.

        Raises:
            InputError: It is refused.
        """
        rule = f"longer than {self.sequence_length:,} tokens"
        if self._too_long == "refuse":
            remedy = "shorten it, raise the sequence length, or set task.too_long=right, left or drop"
            raise InputError(f"{location}: its {num_tokens:,} tokens are {rule}; {remedy}")
        self.tally.note("dropped" if self._too_long == "drop" else "cut", rule, location)
        return self._too_long != "drop"

    def with_targets(self, example: Example | None, location: str) -> list[Example]:
        """Return an example in a list, which is empty if nothing of it is learned; that is counted."""
        if example is None:
            return []
        if not any(example.is_target):
            self.tally.note("dropped", f"nothing to predict is left within {self.sequence_length:,} tokens", location)
            return []
        self.tally.num_examples += 1
        return [example]

    def windows(self, text: str, location: str) -> list[Example]:
        """Return a document as several sequences, where one is not enough.

        Each begins with the last token of the one before, so every token but the document's first is predicted once.
        """
        encoded = self._encoded(text, location)
        ids = [*self.begin_ids, *encoded, self.tokenizer.end_of_text_id]
        by_token = self._bytes_by_token(text, encoded)
        num_bytes = np.concatenate([[0] * len(self.begin_ids), by_token, [0]]).astype(np.int64)
        num_bytes[-1] = len(text.encode()) - num_bytes.sum()  # what no token stands for
        size = self.sequence_length
        starts = range(0, len(ids) - 1, size - 1) if size > 1 else range(0)
        if len(starts) > 1:
            self.tally.note("split", f"longer than {size:,} tokens", location)
        made = []
        for start in starts:
            part = ids[start : start + size]
            bytes_of_targets = int(num_bytes[start + 1 : start + size].sum())
            made += self.with_targets(
                Example(part, [False] + [True] * (len(part) - 1), None, bytes_of_targets), location
            )
        return made

    def _piece(self, part: Part, location: str) -> _Piece:
        ids = self._encoded(part.text, location)
        return _Piece(part, ids, 0, len(ids))

    def _encoded(self, text: str, location: str) -> list[int]:
        try:
            encoded = self._encoder.encode([Passage(text)])
        except CannotEncodeError as error:
            raise InputError(
                f"{location}: the model's tokenizer cannot encode the text ({error}); change it"
            ) from error
        self._count_losses(encoded.losses, location)
        return encoded.tokens.tolist()

    def _cut(self, pieces: list[_Piece], location: str) -> list[_Piece]:
        free = [n for n, piece in enumerate(pieces) if not (piece.part.is_target or piece.part.is_fixed)]
        targets = [n for n, piece in enumerate(pieces) if piece.part.is_target]
        sizes = [len(piece.ids) for piece in pieces]
        room = self.sequence_length - len(self.begin_ids)
        for numbers in (free, targets):
            others = sum(sizes) - sum(sizes[n] for n in numbers)
            for number, size in zip(numbers, _levelled([sizes[n] for n in numbers], room - others), strict=True):
                sizes[number] = size
        if sum(sizes) > room:
            rule = f"the sequence length of {self.sequence_length:,} leaves no room for the text"
            raise InputError(f"{location}: what is put around the text has {sum(sizes):,} tokens; {rule}; raise it")
        return [self._kept(piece, size) for piece, size in zip(pieces, sizes, strict=True)]

    def _kept(self, piece: _Piece, size: int) -> _Piece:
        length = len(piece.ids)
        return piece._replace(start=length - size) if self._too_long == "left" else piece._replace(stop=size)

    def _joined(self, pieces: Sequence[_Piece]) -> Example:
        ids, is_target, num_bytes = list(self.begin_ids), [False] * len(self.begin_ids), 0
        for piece in pieces:
            if piece.part.is_target and piece.stop > piece.start:
                num_bytes += self._num_bytes(piece, is_first=not ids)
            ids += piece.ids[piece.start : piece.stop]
            is_target += [piece.part.is_target] * (piece.stop - piece.start)
        is_target[:1] = [False] * len(is_target[:1])  # nothing comes before the first token
        return Example(ids, is_target, None, num_bytes, any(piece.is_cut for piece in pieces))

    def _num_bytes(self, piece: _Piece, is_first: bool) -> int:
        """Return the bytes of text for which the targets of a piece stand."""
        if not piece.is_cut and not is_first:
            return len(piece.part.text.encode())
        sizes = self._bytes_by_token(piece.part.text, piece.ids)
        return int(sizes[piece.start + is_first : piece.stop].sum())

    def _bytes_by_token(self, text: str, ids: Sequence[int]) -> np.ndarray:
        """Return the bytes of a text that each of its tokens stands for; an end token after them stands for none."""
        if self._table is not None:
            return self._table[np.array(ids, dtype=np.int64)].astype(np.int64)
        counted = self._encoder.encode([Passage(text, counts_bytes=True)]).num_bytes
        assert counted is not None  # it was asked for
        return np.append(counted.astype(np.int64), np.zeros(len(ids) - len(counted), dtype=np.int64))

    def check_text(self, text: str, location: str) -> None:
        """Count what tokens do not give back of a text that others encode.

        Raises:
            InputError: As `build`.
        """
        if not self.tokenizer.loses_nothing:
            self._encoded(text, location)

    def _count_losses(self, losses: Losses, location: str) -> None:
        if losses.num_lost and self.tokenizer.unknown_token is None:
            raise InputError(f"{location}: the model's tokenizer has no token for {losses.shown()}; leave it out")
        self.tally.losses += losses


def _levelled(sizes: Sequence[int], room: int) -> list[int]:
    """Return sizes whose sum is at most `room`, where the largest have lost most."""
    kept, left = list(sizes), max(room, 0)
    for rank, number in enumerate(sorted(range(len(sizes)), key=lambda n: sizes[n])):
        kept[number] = min(sizes[number], left // (len(sizes) - rank))
        left -= kept[number]
    return kept
