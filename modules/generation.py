"""Sampling with a key-value cache.

Shapes: B sequences, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.attention import KeyValueCache
from modules.errors import InputError
from modules.model import GPT


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
    seed: int = 0
    """Seed of the random numbers."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a sequence; without one it ends at `max_new_tokens` alone."""
    context_length: int | None = None
    """Tokens that the model sees at once; None takes all its positions."""
    document_end_id: int | None = None
    """Token after which a sequence is a new document, for models that attend within documents alone; else None."""


def sample(model: GPT, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Tensor]:
    """Yield several continuations of one prompt, one token of each at a time.

    Sequence i has its own random numbers, keyed by (seed, i), so it does not depend on the number of sequences.
    Temperature, top k and top p are applied in this order, as in `transformers`. Once the model's positions are full,
    the older half of the window is dropped and the rest is computed again, so the length has no limit.

    Args:
        model: On any device. If it is sharded, every rank must iterate alike.
        prompt_ids: Token ids to continue; of a prompt longer than the model's positions, only the end is used.
        sampling: Settings of the continuation.

    Yields:
        int64 [num_sequences] on the CPU, the next token of each sequence; the first of `stop_ids` for those that have
        ended. The iterator stops once all have ended.

    Raises:
        InputError: The prompt is empty, or holds a token id outside the vocabulary.
    """
    _check_prompt(prompt_ids, model.vocab_size)
    return _sample(model, prompt_ids, sampling)


def sampling_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the float32 probabilities [B, V] of drawing each token, from logits [B, V]; temperature above 0."""
    logits = logits.float() / sampling.temperature
    top_k, top_p = sampling.top_k, sampling.top_p
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p is not None and top_p < 1:
        ascending, order = logits.sort()
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        dropped[:, -1] = False  # the most likely token stays for every top_p
        logits = logits.masked_fill(dropped.scatter(1, order, dropped), float("-inf"))
    return logits.softmax(-1)


@torch.no_grad()
def _sample(model: GPT, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Tensor]:
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    num_sequences, count = sampling.num_sequences, sampling.max_new_tokens
    stop_ids = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=device)
    uniforms = _uniforms(sampling.seed, num_sequences, count).to(device)
    window = _Window(model, torch.tensor(prompt_ids, device=device), sampling)
    ended = torch.zeros(num_sequences, dtype=torch.bool, device=device)
    try:
        for step in range(count):
            tokens = _next_tokens(window.next_logits(), sampling, uniforms[:, step])
            if sampling.stop_ids:
                tokens = tokens.masked_fill(ended, sampling.stop_ids[0])
                ended |= torch.isin(tokens, stop_ids)
            yield tokens.cpu()
            if sampling.stop_ids and bool(ended.all()):
                return
            window.append(tokens)
    finally:
        model.train(was_training)


def _next_tokens(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return _draw(sampling_probabilities(logits, sampling), uniforms)


class _Window:
    """The tokens within the model's context, with their keys and values."""

    def __init__(self, model: GPT, prompt: Tensor, sampling: Sampling) -> None:
        self._model = model
        longest = min(sampling.context_length or model.config.max_positions, model.config.max_positions)
        self._size = min(longest, len(prompt) + sampling.max_new_tokens)
        self._document_end_id = sampling.document_end_id
        self._tokens = prompt[-self._size :].expand(sampling.num_sequences, -1)
        self._cache = self._new_cache(sampling.num_sequences)

    def next_logits(self) -> Tensor:
        """Return the logits [B, V] of the next token."""
        if self._tokens.shape[1] > self._size:
            self._tokens = self._tokens[:, -(self._size // 2 + 1) :]
            self._cache = self._new_cache(len(self._tokens))
        new = self._tokens[:, self._cache.length :]
        with _uncompiled(self._model):
            hidden = self._model(new, document_ids=self._document_ids(), cache=self._cache)
        return self._model.head.logits(hidden[:, -1])

    def _document_ids(self) -> Tensor | None:
        """Return the number of each token's document, [B, S]; None if attention crosses documents."""
        if self._document_end_id is None:
            return None
        ends = (self._tokens == self._document_end_id).long()
        return ends.cumsum(1) - ends

    def append(self, tokens: Tensor) -> None:
        self._tokens = torch.cat([self._tokens, tokens[:, None]], dim=1)

    def _new_cache(self, num_sequences: int) -> KeyValueCache:
        return KeyValueCache(self._model.config, num_sequences, self._size)


def _uncompiled(model: GPT) -> AbstractContextManager[Any]:
    """Return a context in which a compiled model runs eagerly; otherwise it would be recompiled for every length."""
    # set_stance imports the compiler, which takes longer than generating a short text
    compiled = model._compiled_call_impl is not None
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    if len(prompt_ids) == 0:
        raise InputError("the prompt has no tokens; give at least one, such as the end-of-text token")
    if min(prompt_ids) < 0 or max(prompt_ids) >= vocab_size:
        wrong = next(token for token in prompt_ids if not 0 <= token < vocab_size)
        raise InputError(f"prompt token {wrong}: the model has tokens 0 to {vocab_size - 1}; use its own tokenizer")


def _uniforms(seed: int, num_sequences: int, count: int) -> Tensor:
    """Return numbers in [0, 1), float64 [num_sequences, count]; each row depends only on the seed and its index."""
    rows = [np.random.Generator(np.random.Philox(key=(seed, i))).random(count) for i in range(num_sequences)]
    return torch.from_numpy(np.stack(rows))


def _draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return tokens, int64 [B], by inverse transform sampling at `uniforms` [B]; none has probability 0."""
    cumulative = probabilities.double().cumsum(-1)
    # The factor slightly below 1 keeps rounding from stepping past the last token of nonzero probability.
    thresholds = uniforms[:, None] * cumulative[:, -1:] * (1 - 1e-12)
    return torch.searchsorted(cumulative, thresholds, right=True)[:, 0]
