"""A conversation with a model: its history, what the model sees of it, and answers that grow token by token."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

from modules.chat_template import ChatTemplate
from modules.data.encoding import CannotEncodeError
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError
from modules.generation.sampler import Sampler, window_of
from modules.generation.sampling import Sampling
from modules.generation.stop import StoppedText
from modules.generation.window import Window, window_size
from modules.model import GPT

EndedBy = Literal["end token", "stop string", "max_new_tokens", "positions", "interrupt"]
_SHARE_FOR_ANSWER = 4
"""Of the positions, one in so many is kept free for an answer, or fewer if `max_new_tokens` is less."""


class Answer:
    """What the model says in one turn."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        sampling: Sampling,
        stop: Sequence[str],
        size: int,
        start: Callable[[], Sampler],
        num_forgotten: int,
    ) -> None:
        """Begin an empty answer; nothing is computed before the first token.

        Args:
            tokenizer: The model's.
            ids: All tokens that the model sees before it.
            sampling: Its end tokens and longest length count.
            stop: Texts that end it, which are no part of it.
            size: Tokens that the model sees at once.
            start: Computes `ids`, and returns what gives the tokens of the answer.
            num_forgotten: Turns that the model saw so far and sees no more.
        """
        self._end_ids, self._start = sampling.end_ids, start
        self._room, self._max_new_tokens = size - len(ids), sampling.max_new_tokens
        self._text = StoppedText(tokenizer.text_stream(ids), stop)
        self.num_forgotten = num_forgotten
        """Turns, a question with its answer each, that the model saw so far and from this one on sees no more."""
        self.num_tokens = 0
        self.ended_by: EndedBy | None = None
        """None while it grows."""

    @property
    def text(self) -> str:
        """What has been said so far."""
        return self._text.text

    def __iter__(self) -> Iterator[str]:
        """Yield the text that each token adds, empty within a character, until the answer ends or is stopped."""
        sampler = self._start()
        while self.ended_by is None:
            yield self._add(sampler.next()[0])

    def stop(self) -> str:
        """End it here, and return the rest of its text."""
        return self._ended("interrupt") if self.ended_by is None else ""

    def _add(self, token: int) -> str:
        self.num_tokens += 1
        if token in self._end_ids:
            return self._ended("end token")
        piece = self._text.add(token)
        if self._text.is_stopped:
            return piece + self._ended("stop string")
        if self.num_tokens == self._max_new_tokens:
            return piece + self._ended("max_new_tokens")
        return piece + self._ended("positions") if self.num_tokens == self._room else piece

    def _ended(self, reason: EndedBy) -> str:
        rest = self._text.finish()
        self.ended_by = "stop string" if self._text.is_stopped else reason  # the rest may hold one
        return rest


class Conversation:
    """A model that is talked to.

    Each question is the whole conversation written by the template, of which only what the model has not computed yet
    is computed. When there are too many tokens for the model, the oldest turns are left out for good; the system
    message stays.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, template: ChatTemplate, sampling: Sampling, stop: Sequence[str] = ()
    ) -> None:
        """Begin an empty conversation.

        Args:
            model: In evaluation mode, on any device.
            tokenizer: Its tokenizer.
            template: Its chat template.
            sampling: How tokens are chosen; there is one sequence whatever it says.
            stop: Texts that end an answer, which are no part of it.
        """
        self._model, self._tokenizer, self._template, self._stop = model, tokenizer, template, stop
        self._sampling = replace(sampling, num_sequences=1)
        self._size = window_size(model, sampling.context_length)
        self._window: Window | None = None
        self._system: list[dict[str, str]] = []
        self._turns: list[dict[str, str]] = []
        self._num_unseen = 0  # messages at the start of the turns

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that was said, also what the model sees no more; first the system message, if there is one."""
        return [*self._system, *self._turns]

    def reset(self) -> None:
        """Forget all that was said; the system message stays."""
        self._turns, self._num_unseen = [], 0

    def set_system(self, text: str) -> None:
        """Give the model a system message in place of the present one, for all of the conversation; empty gives none.

        Raises:
            InputError: The template takes none, or the model has too few positions for it; the present one stays.
        """
        system = system_message(text)
        self._encoded(system, self._num_unseen, "Hello")
        num_tokens = len(self._encoded(system, len(self._turns), "Hello"))
        if text and num_tokens >= self._size:
            rule = f"the model sees {self._size:,} at once"
            raise InputError(f"the system message has {num_tokens:,} tokens with a short message; {rule}; shorten it")
        self._system = system

    @contextmanager
    def asked(self, text: str) -> Iterator[Answer]:
        """Yield the growing answer to a question; what it is at the end becomes part of the conversation.

        An answer that was stopped before it had any text is dropped with its question.

        Raises:
            InputError: The template refuses the question, or the model has too few positions for it alone. The
                conversation is as before.
        """
        ids, num_unseen = self._fitting(text)
        num_forgotten = (num_unseen - self._num_unseen) // 2
        start = partial(self._sampler, ids)
        answer = Answer(self._tokenizer, ids, self._sampling, self._stop, self._size, start, num_forgotten)
        try:
            yield answer
        except BaseException:
            self._window = None  # it may have been left within a computation
            raise
        finally:
            answer.stop()
            if answer.text or answer.ended_by != "interrupt":
                self._num_unseen = num_unseen
                said = {"role": "assistant", "content": answer.text}
                self._turns += [{"role": "user", "content": text}, said]

    def _fitting(self, text: str) -> tuple[list[int], int]:
        """Return the tokens of the conversation with a question, and how many messages are left out so that it fits."""
        wanted = self._size - min(self._sampling.max_new_tokens, self._size // _SHARE_FOR_ANSWER)
        num_unseen = self._num_unseen
        ids = self._encoded(self._system, num_unseen, text)
        while len(ids) > wanted and num_unseen < len(self._turns):
            num_unseen += 2
            ids = self._encoded(self._system, num_unseen, text)
        if len(ids) >= self._size:
            rule = f"the model sees {self._size:,} at once, and its answer needs room, too"
            beside = "the system message and what the template adds" if self._system else "what the template adds"
            raise InputError(f"the message has {len(ids):,} tokens with {beside}; {rule}; shorten it")
        return ids, num_unseen

    def _encoded(self, system: Sequence[dict[str, str]], num_unseen: int, question: str) -> list[int]:
        messages = [*system, *self._turns[num_unseen:], {"role": "user", "content": question}]
        try:
            ids = self._template.encode(self._tokenizer, messages, add_generation_prompt=True)
        except CannotEncodeError as error:
            raise InputError(f"the model's tokenizer cannot encode the message ({error})") from error
        if not ids:
            raise InputError("the template makes no tokens of the message; write another one")
        return ids

    def _sampler(self, ids: Sequence[int]) -> Sampler:
        if self._window is None:
            self._window = window_of(self._model, [ids], self._sampling)
        else:
            self._window.replace(ids, self._sampling.max_new_tokens)
        return Sampler(self._window, [ids], self._sampling, [0])


def system_message(text: str) -> list[dict[str, str]]:
    """Return the system message of a text as a list of messages; empty for an empty text."""
    return [{"role": "system", "content": text}] if text else []
