"""Tokens of conversations, and which of them the assistant says, found out from what any chat template writes.

Stock templates do not mark what the assistant says. It is the difference between two texts that the template writes:
the conversation up to a turn with the prompt for an answer, and the same with the answer. The token that ends the turn
belongs to it; a line break that the template writes after that does not.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from modules.chat_template import ChatTemplate, Message, Writer
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError

_REMEDY = "name a file with another one in task.chat_template"
_SHOWN_CHARS = 60
Span = tuple[int, int]
"""First character of a token in the text, and the one after its last."""


class _Turn(NamedTuple):
    """A turn of the assistant as text."""

    asked: str
    """The conversation before it, up to where the assistant begins to speak."""
    answered: str
    """The conversation with it, which begins with `asked`."""


@dataclass(frozen=True)
class TurnSample:
    """Tokens of a conversation up to the end of an assistant's turn."""

    ids: list[int]
    spans: list[Span]
    is_target: list[bool]
    text: str
    """What the template wrote, with markers."""
    marker: str
    textless: frozenset[int]
    """Tokens that stand for no text: the special ones, and those that end a turn."""

    def part(self, kept: Sequence[int]) -> "TurnSample":
        """Return the sample with the tokens at some places alone, of which the first is no target."""
        is_target = [self.is_target[n] for n in kept]
        return replace(
            self,
            ids=[self.ids[n] for n in kept],
            spans=[self.spans[n] for n in kept],
            is_target=[False, *is_target[1:]],
        )

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text for which the targets stand."""
        total, start = 0, None
        for number, (token, is_target) in enumerate(zip(self.ids, self.is_target, strict=True)):
            if is_target and start is None:
                start = max(self.spans[number - 1][1], self.spans[number][0])
            if start is not None and (not is_target or token in self.textless or number == len(self.ids) - 1):
                stop = self.spans[number - (not is_target or token in self.textless)][1]
                total += len(self.text[start:stop].replace(self.marker, "").encode())
                start = None
        return total


class Turns:
    """Writes conversations by a chat template, and tells the assistant's tokens from the others."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, end_token: str | None = None):
        """Find out how a turn of the assistant ends.

        Args:
            template: The chat template.
            tokenizer: The model's.
            end_token: The token that ends a turn; None finds it in what the template writes.

        Raises:
            InputError: There is no such token, or the template writes none.
        """
        self._template, self._tokenizer = template, tokenizer
        self._encoder = tokenizer.control_encoder
        self._end_id = None if end_token is None else _id_of(tokenizer, end_token)
        self.end_id = self._found_end()
        """The token that ends a turn of the assistant."""
        self._textless = self._encoder.special | {self.end_id}

    @property
    def end_token(self) -> str:
        """Its name."""
        return str(self._tokenizer.token_of(self.end_id))

    def writer(self, messages: Sequence[Message]) -> Writer:
        """Return what writes these messages."""
        return self._template.writer(self._tokenizer, messages)

    def samples(self, writer: Writer, messages: Sequence[Message], learned: Sequence[int]) -> list[TurnSample]:
        """Return a conversation as one sample, or as one a turn if the template writes its history anew at each turn.

        Args:
            writer: What writes them.
            messages: Messages of the writer.
            learned: Places of the assistant's turns that are targets, in order, at least one.

        Raises:
            InputError: The template refuses the messages, or does not write a turn as it asks for it.
        """
        turns = [self._turn(writer, messages, place) for place in learned]
        whole = turns[-1].answered
        if all(whole.startswith(turn.answered) for turn in turns):
            sample = self._together(writer, turns)
            if sample is not None:
                return [sample]
        return [self._together(writer, [turn]) or self._apart(writer, turn) for turn in turns]

    def question(self, writer: Writer, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that ask for the assistant's next turn."""
        return writer.encode(writer.text(messages, add_generation_prompt=True))

    def _turn(self, writer: Writer, messages: Sequence[Message], place: int) -> _Turn:
        asked = writer.text(messages[:place], add_generation_prompt=True)
        answered = writer.text(messages[: place + 1])
        if not answered.startswith(asked):
            differs = next((n for n, (a, b) in enumerate(zip(asked, answered, strict=False)) if a != b), len(answered))
            prompt, written = (text[differs:].replace(writer.marker, "") for text in (asked, answered))
            raise InputError(
                f"the chat template asks for an answer with {prompt[:_SHOWN_CHARS]!r}, but writes the answer as "
                f"{written[:_SHOWN_CHARS]!r}, so what it asks for is not what would be learned; {_REMEDY}"
            )
        return _Turn(asked, answered)

    def _together(self, writer: Writer, turns: Sequence[_Turn]) -> TurnSample | None:
        """Return turns of one text as a sample; None if the tokens before a turn are not those that ask for it.

        That is told without encoding every beginning of the text: no token reaches over a special one, so only what
        comes after the last of them is encoded again.
        """
        text = turns[-1].answered
        encoding = writer.encoding(text)
        ids, spans = encoding.ids, encoding.offsets
        borders = [number for number, token in enumerate(ids) if token in self._encoder.borders]
        is_target, known = [False] * len(ids), {}
        for turn in turns:
            start = self._start(writer, turn.asked, ids, spans, borders, known)
            if start is None:
                return None
            stop = self._stop(text, ids, spans, start, len(turn.answered))
            is_target[start:stop] = [True] * (stop - start)
        length = len(is_target) - is_target[::-1].index(True)  # nothing is learned from what comes after
        return TurnSample(ids[:length], spans[:length], is_target[:length], text, writer.marker, self._textless)

    def _start(
        self,
        writer: Writer,
        asked: str,
        ids: Sequence[int],
        spans: Sequence[Span],
        borders: list[int],
        known: dict[str, list[int]],
    ) -> int | None:
        """Return how many tokens of a text ask for a turn; None if what asks is encoded otherwise alone."""
        border = next((number for number in reversed(borders) if spans[number][1] <= len(asked)), None)
        tail, first = (asked, 0) if border is None else (asked[spans[border][0] :], border)
        if tail not in known:
            known[tail] = writer.encode(tail)
        stop = first + len(known[tail])
        return stop if list(ids[first:stop]) == known[tail] else None

    def _apart(self, writer: Writer, turn: _Turn) -> TurnSample:
        """Return a turn whose first token would merge with what asks for it, with its text encoded apart."""
        asked, said = writer.encoding(turn.asked), writer.encoding(turn.answered[len(turn.asked) :])
        shift, start = len(turn.asked), len(asked.ids)
        ids = [*asked.ids, *said.ids]
        spans = [*asked.offsets, *((first + shift, last + shift) for first, last in said.offsets)]
        stop = self._stop(turn.answered, ids, spans, start, len(turn.answered))
        is_target = [start <= number < stop for number in range(stop)]
        return TurnSample(ids[:stop], spans[:stop], is_target, turn.answered, writer.marker, self._textless)

    def _stop(self, text: str, ids: Sequence[int], spans: Sequence[Span], start: int, end: int) -> int:
        """Return the place after the token that ends a turn, which goes from token `start` to character `end`.

        Raises:
            InputError: There is none.
        """
        enders = self._encoder.special if self._end_id is None else {self._end_id}
        last = bisect_right(spans, end, key=lambda span: span[1])
        found = next((number for number in range(last - 1, start - 1, -1) if ids[number] in enders), None)
        if found is None or (self._end_id is None and text[spans[found][1] : end].strip()):
            name = "special token" if self._end_id is None else self._tokenizer.token_of(self._end_id)
            what = f"writes no {name} after an answer"
            raise InputError(
                f"the chat template {what}, so a model could never learn to stop; add the token that it writes "
                f"there in task.new_tokens, or {_REMEDY}"
            )
        return found + 1

    def _found_end(self) -> int:
        writer = self.writer([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}])
        answered = writer.text(writer.messages)
        asked = writer.text(writer.messages[:1], add_generation_prompt=True)
        encoding = writer.encoding(answered)
        start = sum(stop <= len(asked) for _, stop in encoding.offsets) if answered.startswith(asked) else 0
        return encoding.ids[self._stop(answered, encoding.ids, encoding.offsets, start, len(answered)) - 1]


def _id_of(tokenizer: Tokenizer, name: str) -> int:
    number = tokenizer.id_of(name)
    if number is None:
        raise InputError(
            f"task.end_token={name}: the model's tokenizer has no such token; name one that it has, or add it in "
            "task.new_tokens"
        )
    return number


def find_end_token(template: ChatTemplate, tokenizer: Tokenizer, given: str | None = None) -> str:
    """Return the name of the token that ends a turn of the assistant; an exported model stops at it.

    Raises:
        InputError: As `Turns`.
    """
    return Turns(template, tokenizer, given).end_token
