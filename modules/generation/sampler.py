"""Sequences that grow by sampled tokens."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from modules.generation.sampling import Sampling, Seen, Uniforms, next_tokens, random_stream
from modules.generation.window import Window, evaluating
from modules.model import GPT


class Sampler:
    """Several continuations of one or more prompts, of which any may end before the others."""

    def __init__(
        self, window: Window, prompts: Sequence[Sequence[int]], sampling: Sampling, first_sequences: Sequence[int]
    ) -> None:
        """Continue the rows of a window.

        Args:
            window: It holds the prompts, `sampling.num_sequences` rows of each.
            prompts: Their token ids.
            sampling: Settings of the continuations.
            first_sequences: For each prompt, the number of its first continuation, from which its random numbers come.
        """
        self._window, self._sampling = window, sampling
        self._rows = list(range(window.num_rows))
        self._open = set(self._rows)
        self._last: Tensor | None = None
        device = window.logits.device
        every = [ids for ids in prompts for _ in range(sampling.num_sequences)]
        self._seen = Seen(every, window.logits.shape[-1], device) if sampling.repetition_penalty != 1 else None
        streams = [
            random_stream(sampling.seed, ids, first + number)
            for ids, first in zip(prompts, first_sequences, strict=True)
            for number in range(sampling.num_sequences)
        ]
        self._uniforms = Uniforms(streams, device) if sampling.temperature else None

    @property
    def is_done(self) -> bool:
        return not self._open

    def next(self) -> dict[int, int]:
        """Return the next token of each sequence that has not ended, by its number."""
        if self._last is not None:
            self._window.append(self._last)
        self._last = tokens = self._chosen()
        if self._seen is not None:
            self._seen.add(tokens)
        # the one place where the host waits for the device
        numbers = tokens.tolist()
        return {row: number for row, number in zip(self._rows, numbers, strict=True) if row in self._open}

    def end(self, sequence: int) -> None:
        """Have `next` return no more tokens of a sequence."""
        self._open.discard(sequence)
        # a row costs time as long as it is computed, and copying the others to leave it out costs time, too
        if self._open and 2 * len(self._open) <= len(self._rows):
            self._leave_out_ended()

    def _chosen(self) -> Tensor:
        uniforms = self._uniforms.next() if self._uniforms is not None else None
        return next_tokens(self._window.logits, self._sampling, self._seen and self._seen.mask, uniforms)

    def _leave_out_ended(self) -> None:
        kept = [place for place, row in enumerate(self._rows) if row in self._open]
        index = torch.tensor(kept, device=self._window.logits.device)
        self._window.select(kept)
        if self._uniforms is not None:
            self._uniforms.select(kept)
        if self._seen is not None:
            self._seen.select(index)
        self._last = None if self._last is None else self._last[index]
        self._rows = [self._rows[place] for place in kept]


def sample(model: GPT, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Tensor]:
    """Yield several continuations of each prompt, one token of each at a time; each token takes one forward pass.

    Sequence i of a prompt has its own random numbers, a function of seed, prompt and i, so it depends neither on the
    number of sequences nor on the other prompts.

    Args:
        model: On any device. If it is sharded, every rank must iterate alike.
        prompts: Token ids to continue; of a prompt longer than the model's positions, only the end is used.
        sampling: Settings of the continuations.

    Yields:
        int64 [prompts x num_sequences] on the CPU, the next token of each sequence; the first of `end_ids` for those
        that have ended. The iterator stops once all have ended.

    Raises:
        InputError: A prompt is empty, or holds a token id outside the vocabulary.
    """
    with evaluating(model):
        sampler = Sampler(window_of(model, prompts, sampling), prompts, sampling, [0] * len(prompts))
        filler = next(iter(sampling.end_ids), 0)
        for _ in range(sampling.max_new_tokens):
            tokens = sampler.next()
            yield torch.tensor([tokens.get(row, filler) for row in range(len(prompts) * sampling.num_sequences)])
            for sequence, token in tokens.items():
                if token in sampling.end_ids:
                    sampler.end(sequence)
            if sampler.is_done:
                return


def window_of(model: GPT, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Window:
    """Return the window in which prompts are continued, with a row for each sequence."""
    return Window(
        model,
        prompts,
        num_copies=sampling.num_sequences,
        max_new_tokens=sampling.max_new_tokens,
        context_length=sampling.context_length,
        document_end=sampling.document_end,
    )
