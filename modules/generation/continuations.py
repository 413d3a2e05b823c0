"""Prompts to the texts that continue them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from modules.data.tokenizer import Tokenizer
from modules.generation.beam import Beam, beam_search
from modules.generation.sampler import Sampler, window_of
from modules.generation.sampling import Sampling
from modules.generation.stop import StoppedText, cut_at_stop
from modules.model import GPT

EndedBy = Literal["end token", "stop string", "length"]


@dataclass(frozen=True)
class Prompt:
    """A text to continue, as token ids."""

    ids: tuple[int, ...]
    first_sequence: int = 0
    """Number of its first continuation; it differs between prompts that are equal, so that their texts do, too."""


@dataclass(frozen=True)
class Continuation:
    """A text that continues a prompt."""

    text: str
    """Without the stop string that ended it."""
    num_tokens: int
    """Tokens that were generated, the last one included, which may have ended it."""
    ended_by: EndedBy
    score: float | None = None
    """Of beam search."""


@dataclass(frozen=True)
class BeamSettings:
    """Settings of beam search."""

    num_beams: int
    length_penalty: float = 1.0
    """Above 0 prefers long texts, below 0 short ones."""


def numbered_prompts(every_ids: Iterable[Sequence[int]], num_sequences: int) -> list[Prompt]:
    """Return prompts of which those that are equal have continuations of different numbers."""
    before: Counter[tuple[int, ...]] = Counter()
    prompts = []
    for ids in map(tuple, every_ids):
        prompts.append(Prompt(ids, before[ids] * num_sequences))
        before[ids] += 1
    return prompts


class GrowingText:
    """The text of one sequence, token by token, until something ends it."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: Sampling, stop: Sequence[str]
    ) -> None:
        """Begin an empty text.

        Args:
            tokenizer: The model's.
            prompt_ids: What it continues.
            sampling: Its end tokens and longest length count.
            stop: Texts that end it, which are no part of it.
        """
        self._text = StoppedText(tokenizer.text_stream(prompt_ids), stop)
        self._sampling = sampling
        self._num_tokens = 0
        self.ended_by: EndedBy | None = None
        """None while it grows."""

    def add(self, token: int) -> str:
        """Return the text that is certain after one more token, the whole rest if that token ends it."""
        self._num_tokens += 1
        text = self._text.add(token)
        if self._text.is_stopped:
            self.ended_by = "stop string"
            return text
        if token in self._sampling.end_ids:
            self.ended_by = "end token"
        elif self._num_tokens == self._sampling.max_new_tokens:
            self.ended_by = "length"
        else:
            return text
        return text + self._finished()

    def continuation(self) -> Continuation:
        """Return the text once it has ended."""
        assert self.ended_by is not None
        return Continuation(self._text.text, self._num_tokens, self.ended_by)

    def _finished(self) -> str:
        rest = self._text.finish()
        if self._text.is_stopped:  # the rest held a stop string
            self.ended_by = "stop string"
        return rest


def grow(sampler: Sampler, texts: Sequence[GrowingText]) -> Iterator[dict[int, str]]:
    """Add tokens to the texts of a sampler's sequences until all have ended; yield what each token adds, by number."""
    while not sampler.is_done:
        added = {sequence: texts[sequence].add(token) for sequence, token in sampler.next().items()}
        for sequence in added:
            if texts[sequence].ended_by:
                sampler.end(sequence)
        yield added


class Continuer:
    """A model with its tokenizer, and how it continues prompts."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, sampling: Sampling, stop: Sequence[str], beams: BeamSettings | None
    ) -> None:
        """Take the settings.

        Args:
            model: In evaluation mode, on any device.
            tokenizer: Its tokenizer.
            sampling: How tokens are chosen; under beam search those of its settings count that draw nothing.
            stop: Texts that end a continuation, which are no part of it.
            beams: None draws.
        """
        self._model, self._tokenizer, self._sampling, self._stop = model, tokenizer, sampling, tuple(stop)
        self._beams = beams

    def batch(self, prompts: Sequence[Prompt]) -> list[list[Continuation]]:
        """Return the continuations of each prompt, computed together."""
        if self._beams is not None:
            return self._searched([prompt.ids for prompt in prompts], self._beams)
        sampler, texts = self._started(prompts)
        for _ in grow(sampler, texts):
            pass
        found, number = [text.continuation() for text in texts], self._sampling.num_sequences
        return [found[start : start + number] for start in range(0, len(found), number)]

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """Yield the text of a prompt's only continuation as it comes; what may become a stop string is held back."""
        for added in grow(*self._started([prompt])):
            yield added[0]

    def _started(self, prompts: Sequence[Prompt]) -> tuple[Sampler, list[GrowingText]]:
        every_ids = [prompt.ids for prompt in prompts]
        first = [prompt.first_sequence for prompt in prompts]
        sampler = Sampler(window_of(self._model, every_ids, self._sampling), every_ids, self._sampling, first)
        every = [ids for ids in every_ids for _ in range(self._sampling.num_sequences)]
        return sampler, [GrowingText(self._tokenizer, ids, self._sampling, self._stop) for ids in every]

    def _searched(self, every_ids: Sequence[Sequence[int]], beams: BeamSettings) -> list[list[Continuation]]:
        are_over = [partial(self._is_over, ids) for ids in every_ids]
        found = beam_search(self._model, every_ids, self._sampling, beams.num_beams, beams.length_penalty, are_over)
        return [[self._continuation(ids, beam) for beam in best] for ids, best in zip(every_ids, found, strict=True)]

    def _is_over(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> bool:
        return bool(self._stop) and cut_at_stop(self._tokenizer.decode_after(prompt_ids, ids), self._stop) is not None

    def _continuation(self, prompt_ids: Sequence[int], beam: Beam) -> Continuation:
        text = self._tokenizer.decode_after(prompt_ids, beam.ids)
        if (before := cut_at_stop(text, self._stop)) is not None:
            return Continuation(before, len(beam.ids), "stop string", beam.score)
        ended_by = "end token" if beam.ids[-1] in self._sampling.end_ids else "length"
        return Continuation(text, len(beam.ids), ended_by, beam.score)
