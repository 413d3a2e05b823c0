"""Conversations, of which the assistant's turns are learned."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from modules.chat_template import Message, Writer
from modules.data.encoding import CannotEncodeError
from modules.data.rows import Row
from modules.errors import InputError
from modules.tasks.inputs import TaskInputs
from modules.tasks.messages import checked_messages
from modules.tasks.sequences import SequenceBuilder
from modules.tasks.settings import DialogueConfig
from modules.tasks.tally import Tally
from modules.tasks.task import Example, Question
from modules.tasks.turns import Turns, TurnSample

_EACH_TURN = "earlier turns are written or encoded otherwise once others follow, so each turn is an example"


def build(inputs: TaskInputs) -> "Dialogue":
    """Return the task.

    Raises:
        InputError: There is no chat template, or none that shows where a turn ends.
    """
    return Dialogue(inputs.settings, inputs)


class Dialogue:
    """Conversations that a chat template writes.

    One that is too long loses whole turns first, the oldest or the newest, as `too_long` says; its system message
    stays. What is still too long loses the start of its question rather than its answer.
    """

    def __init__(self, settings: DialogueConfig, inputs: TaskInputs):
        if inputs.template is None:
            raise InputError(
                "task=dialogue: the model came without a chat template, so how its turns are written is not known; "
                "name a file with one in task.chat_template"
            )
        self._settings, self._length = settings, inputs.sequence_length
        self.tally = Tally()
        self._builder = SequenceBuilder(inputs.tokenizer, inputs.sequence_length, settings.too_long, self.tally)
        self._turns = Turns(inputs.template, inputs.tokenizer, settings.end_token)

    @property
    def end_token(self) -> str:
        """The token that ends a turn of the assistant."""
        return self._turns.end_token

    @property
    def fields(self) -> Sequence[str]:
        return (self._settings.messages_field,)

    @property
    def optional_fields(self) -> Sequence[str]:
        return ()

    def examples(self, row: Row) -> list[Example]:
        """Return a conversation as one example, or as one a turn where the template writes history anew."""
        self.tally.num_rows += 1
        messages = checked_messages(row, self._settings.messages_field)
        learned = self._learned(messages, row.location)
        if not learned:
            return []
        with _named(row.location):
            self._check_texts(messages, row.location)
            samples = self._samples(messages[: learned[-1] + 1], learned, row.location)
        return [
            example
            for sample, was_cut in samples
            for example in self._builder.with_targets(
                Example(sample.ids, sample.is_target, None, sample.num_bytes, was_cut), row.location
            )
        ]

    def questions(self, row: Row) -> list[Question]:
        """Return the conversation up to the last turn of the user; what the assistant says then is the reference."""
        self.tally.num_rows += 1
        messages = checked_messages(row, self._settings.messages_field)
        place = max((number for number, message in enumerate(messages) if message["role"] == "user"), default=None)
        if place is None:
            raise InputError(
                f"{row.location}: no message is by the user, so there is nothing to answer; remove the row"
            )
        reference = messages[place + 1]["content"] if place + 1 < len(messages) else None
        with _named(row.location):
            ids = self._question(messages[: place + 1], row.location)
        return [] if ids is None else [Question(ids, messages[place]["content"], reference)]

    def _learned(self, messages: Sequence[Message], location: str) -> list[int]:
        """Return the places of the answers; what is not learned of the conversation is counted."""
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        learned = [number for number in answers if messages[number]["content"].strip()]
        if not learned:
            reason = "every answer is empty" if answers else "no assistant turn" if messages else "no messages"
            self.tally.note("dropped", reason, location)
            return []
        if len(learned) < len(answers):
            self.tally.note("in part not learned", "an answer is empty", location)
        if messages[-1]["role"] == "user":
            self.tally.note("in part not learned", "the user has the last word", location)
        return learned

    def _check_texts(self, messages: Sequence[Message], location: str) -> None:
        for message in messages:
            self._builder.check_text(message["content"], location)

    def _samples(
        self, messages: Sequence[Message], learned: Sequence[int], location: str
    ) -> list[tuple[TurnSample, bool]]:
        """Return the samples of a conversation that ends with an answer, and whether each was cut."""
        writer = self._turns.writer(messages)
        samples = self._turns.samples(writer, writer.messages, learned)
        if len(samples) > 1:
            self.tally.note("split", _EACH_TURN, location)
        made: list[tuple[TurnSample, bool]] = []
        for number, sample in enumerate(samples):
            if len(sample.ids) <= self._length:
                made.append((sample, False))
            elif self._builder.may_cut(len(sample.ids), location):
                own = learned if len(samples) == 1 else learned[number : number + 1]
                made += [(self._fitting(part), True) for part in self._with_fewer_turns(writer, own)]
        return made

    def _with_fewer_turns(self, writer: Writer, learned: Sequence[int]) -> list[TurnSample]:
        """Return the samples of as many turns as fit, with one answer that is learned at least."""
        last = learned[-1]
        if self._settings.too_long == "right":
            newest_first = learned[:0:-1]
            found = bisect_left(newest_first, True, key=lambda end: self._fits(self._without(writer, learned, 0, end)))
            last = [*newest_first, learned[0]][found]
        num_before = (last - int(writer.messages[0]["role"] == "system")) // 2
        num_oldest = bisect_left(
            range(num_before), True, key=lambda number: self._fits(self._without(writer, learned, number, last))
        )
        return self._without(writer, learned, num_oldest, last)

    def _without(self, writer: Writer, learned: Sequence[int], num_oldest: int, last: int) -> list[TurnSample]:
        """Return the samples of a conversation without its oldest turns, and with nothing after the message `last`."""
        kept = _later(range(last + 1), writer.messages, num_oldest)
        places = [number for number, place in enumerate(kept) if place in learned]
        return self._turns.samples(writer, [writer.messages[place] for place in kept], places)

    def _fits(self, samples: Sequence[TurnSample]) -> bool:
        return all(len(sample.ids) <= self._length for sample in samples)

    def _fitting(self, sample: TurnSample) -> TurnSample:
        """Return a sample without the start of its question, and without an end of its answer if that is too long."""
        num_tokens, first = len(sample.ids), sample.is_target.index(True)
        if num_tokens <= self._length:
            return sample
        num_begin = self._num_begin(sample.ids)
        room = self._length - num_begin
        start = num_tokens - room
        if self._settings.too_long == "right":
            start = min(start, max(num_begin, first - 1))
        return sample.part([*range(num_begin), *range(start, start + room)])

    def _num_begin(self, ids: Sequence[int]) -> int:
        begin = self._builder.begin_ids
        return len(begin) if tuple(ids[: len(begin)]) == begin and len(begin) < self._length else 0

    def _question(self, messages: Sequence[Message], location: str) -> list[int] | None:
        """Return the tokens of a conversation that ends with a question; without its oldest turns if it is too long."""
        writer = self._turns.writer(messages)

        def without(num_oldest: int) -> list[int]:
            kept = _later(range(len(messages)), messages, num_oldest)
            return self._turns.question(writer, [writer.messages[place] for place in kept])

        ids = without(0)
        if len(ids) <= self._length:
            return ids
        if not self._builder.may_cut(len(ids), location):
            return None
        num_before = (len(messages) - 1) // 2
        ids = without(bisect_left(range(num_before), True, key=lambda number: len(without(number)) <= self._length))
        num_begin = self._num_begin(ids)
        return ids if len(ids) <= self._length else [*ids[:num_begin], *ids[len(ids) - self._length + num_begin :]]


def _later(places: Sequence[int], messages: Sequence[Message], num_oldest: int) -> list[int]:
    """Return the places of messages without the oldest turns, a question and an answer each; a system message stays."""
    num_system = int(messages[0]["role"] == "system")
    return [*places[:num_system], *places[num_system + 2 * num_oldest :]]


@contextmanager
def _named(location: str) -> Iterator[None]:
    """Let the errors of templates and tokenizers begin with the row."""
    try:
        yield
    except InputError as error:
        known = str(error).startswith(f"{location}: ")
        cannot = "the model's tokenizer cannot encode the text " if isinstance(error, CannotEncodeError) else ""
        raise InputError(str(error) if known else f"{location}: {cannot}{error}") from error
