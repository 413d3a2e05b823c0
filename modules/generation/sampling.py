"""How the next token is chosen.

Shapes: B rows, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modules.generation.window import DocumentEnd

_BLOCK_STEPS = 64


@dataclass(frozen=True)
class Sampling:
    """Settings that decide how a prompt is continued."""

    num_sequences: int = 1
    """Number of continuations."""
    max_new_tokens: int = 50
    """Longest continuation in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Sample among the k most likely tokens (and ties); None takes all."""
    top_p: float | None = None
    """Sample among the most likely tokens that together reach this probability; None takes all."""
    min_p: float | None = None
    """Sample among tokens of at least this share of the highest probability; None takes all."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, and multiplies the negative ones, of tokens that the prompt or the text has."""
    seed: int = 0
    """Seed of the random numbers."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end a sequence; without one it ends at `max_new_tokens` alone."""
    context_length: int | None = None
    """Tokens that the model sees at once; None takes all its positions."""
    document_end: DocumentEnd | None = None
    """For models that attend within documents alone; else None."""


def penalized(logits: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """Return logits [B, V] with those of seen tokens made less likely (Keskar et al. 2019, arXiv 1909.05858).

    Args:
        logits: float32 [B, V].
        seen: bool [B, V], the tokens that a row has; None penalizes none.
        penalty: Above 1 against repetition, below 1 for it.
    """
    if seen is None:
        return logits
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def sampling_probabilities(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Return the float32 probabilities [B, V] of drawing each token, computed as `transformers` does, in its order.

    Args:
        logits: [B, V].
        sampling: Settings with a temperature above 0.
        seen: bool [B, V], the tokens that the repetition penalty is for; None penalizes none.
    """
    logits = penalized(logits.float(), seen, sampling.repetition_penalty) / sampling.temperature
    top_k, top_p, min_p = sampling.top_k, sampling.top_p, sampling.min_p
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p is not None and top_p < 1:
        ascending, order = logits.sort()
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        dropped[:, -1] = False  # the most likely token stays for every top_p
        logits = logits.masked_fill(dropped.scatter(1, order, dropped), float("-inf"))
    if min_p is not None:
        probabilities = logits.softmax(-1)
        highest = probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < min_p * highest, float("-inf"))
    return logits.softmax(-1)


def next_tokens(logits: Tensor, sampling: Sampling, seen: Tensor | None, uniforms: Tensor | None) -> Tensor:
    """Return the tokens that follow, int64 [B]; `uniforms` [B] decide unless the temperature is 0."""
    if uniforms is None:
        return penalized(logits.float(), seen, sampling.repetition_penalty).argmax(-1)
    return _draw(sampling_probabilities(logits, sampling, seen), uniforms)


def _draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return tokens, int64 [B], by inverse transform sampling at `uniforms` [B]; none has probability 0."""
    cumulative = probabilities.double().cumsum(-1)
    # The factor slightly below 1 keeps rounding from stepping past the last token of nonzero probability.
    thresholds = uniforms[:, None] * cumulative[:, -1:] * (1 - 1e-12)
    return torch.searchsorted(cumulative, thresholds, right=True)[:, 0]


class Seen:
    """The tokens that each row has, for the repetition penalty; prompts count, as in `transformers`."""

    def __init__(self, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> None:
        self.mask = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
        for row, ids in enumerate(prompts):
            self.mask[row, list(ids)] = True
        self.mask = self.mask.to(device)

    def add(self, tokens: Tensor) -> None:
        """Count the next token of each row, int64 [B], in."""
        self.mask.scatter_(1, tokens[:, None], True)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, int64, in this order."""
        self.mask = self.mask[rows]


class Uniforms:
    """Random numbers in [0, 1) of several rows, each a stream of its own."""

    def __init__(self, streams: Sequence[np.random.Generator], device: torch.device) -> None:
        self._streams, self._device = list(streams), device
        self._block = torch.empty(len(streams), 0)
        self._used = 0

    def next(self) -> Tensor:
        """Return the next number of each row, float64 [B]."""
        if self._used == self._block.shape[1]:
            drawn = np.stack([stream.random(_BLOCK_STEPS) for stream in self._streams])
            self._block, self._used = torch.from_numpy(drawn).to(self._device), 0
        self._used += 1
        return self._block[:, self._used - 1]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self._streams = [self._streams[row] for row in rows]
        self._block = self._block[list(rows)]


def random_stream(seed: int, prompt_ids: Sequence[int], sequence: int) -> np.random.Generator:
    """Return the random numbers of one continuation of a prompt: a function of seed, prompt and number alone.

    So a text depends neither on the other prompts nor on the number of sequences. A counter-based generator (Philox,
    keyed by seed and sequence) begins at a place that the prompt's digest decides.
    """
    digest = hashlib.blake2b(np.asarray(prompt_ids, dtype="<i8").tobytes(), digest_size=16).digest()
    counter = np.concatenate([np.zeros(2, dtype=np.uint64), np.frombuffer(digest, dtype="<u8")])
    return np.random.Generator(np.random.Philox(key=np.array([seed, sequence], dtype=np.uint64), counter=counter))
