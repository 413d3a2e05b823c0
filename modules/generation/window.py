"""The tokens that a model sees at once, and their keys and values.

Shapes: B rows, C columns in memory, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from modules.attention import KeyValueCache
from modules.errors import InputError
from modules.model import GPT


class DocumentEnd(NamedTuple):
    """The token that ends a document, for a model that was trained with attention within documents."""

    id: int
    restarts_positions: bool = False
    """Whether positions are then counted from 0 again."""


class Window:
    """Several rows of tokens of different lengths, each seen as if it were alone.

    Rows are padded on the left, so that all of them grow at the same column. Once a row fills the model's positions,
    its older half is dropped and the rest is computed again, so its length has no limit.
    """

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        *,
        num_copies: int = 1,
        max_new_tokens: int,
        context_length: int | None = None,
        document_end: DocumentEnd | None = None,
    ) -> None:
        """Compute the prompts.

        Args:
            model: On any device. If it is sharded, every rank must do alike.
            prompts: Token ids; of one that is longer than the window, the end is seen.
            num_copies: Rows that begin with each prompt, next to each other; it is computed once.
            max_new_tokens: Tokens that may be appended; memory is reserved for so many.
            context_length: Tokens that the model sees at once; None takes all its positions.
            document_end: Token after which attention begins anew; None if it crosses documents.

        Raises:
            InputError: A prompt is empty, or holds a token id outside the vocabulary.
        """
        for ids in prompts:
            _check_prompt(ids, model.vocab_size)
        self._model, self._document_end = model, document_end
        self.size = window_size(model, context_length)
        """Tokens of a row that are seen at once."""
        seen = [list(ids[-self.size :]) for ids in prompts]
        longest = max(map(len, seen))
        num_columns = min(self.size, longest + max_new_tokens)
        self._counts = [len(ids) for ids in seen]
        self._cache = self._new_cache(len(seen), num_columns if num_copies == 1 else longest)
        padded = [[0] * (longest - len(ids)) + ids for ids in seen]
        self._ids = torch.zeros(len(seen), num_columns, dtype=torch.int64, device=self._device)
        self.logits = self._computed(torch.tensor(padded, device=self._device))
        """[B, V], the logits of the token that follows each row."""
        if num_copies > 1:
            self.select([row for row in range(len(seen)) for _ in range(num_copies)], num_columns)

    @property
    def num_rows(self) -> int:
        return len(self._counts)

    @torch.no_grad()
    def append(self, tokens: Tensor) -> None:
        """Append a token to each row, int64 [B], and compute the logits of the next."""
        self._restart_full_rows()
        if self._cache.length == self._cache.max_length:
            self._drop_columns(self._cache.length - max(self._counts))
        self._counts = [count + 1 for count in self._counts]
        self.logits = self._computed(tokens[:, None])

    def select(self, rows: Sequence[int], num_columns: int | None = None) -> None:
        """Keep these rows, in this order; a row may be kept several times."""
        if list(rows) == list(range(self.num_rows)):
            return
        index = torch.tensor(rows, device=self._device)
        self._cache.select(index, num_columns or self._cache.max_length)
        self._ids, self.logits = self._ids[index], self.logits[index]
        self._counts = [self._counts[row] for row in rows]

    @torch.no_grad()
    def replace(self, ids: Sequence[int], max_new_tokens: int) -> None:
        """Have the only row hold `ids`, of which those that it begins with already are not computed again.

        Args:
            ids: At most as many as the window holds.
            max_new_tokens: Tokens that may be appended.

        Raises:
            InputError: There are none, or one is outside the vocabulary.
        """
        _check_prompt(ids, self._model.vocab_size)
        held = self._ids[0, : self._cache.length].tolist()
        num_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, ids[:-1], strict=False)))
        self._cache.length = num_same
        num_columns = min(self.size, len(ids) + max_new_tokens)
        if num_columns > self._cache.max_length:
            # doubled, so that a conversation that grows by little is not copied at every turn
            num_columns = min(self.size, max(num_columns, 2 * self._cache.max_length))
            self._cache.select(torch.zeros(1, dtype=torch.int64, device=self._device), num_columns)
            self._ids = torch.nn.functional.pad(self._ids, (0, num_columns - self._ids.shape[1]))
        self._counts = [len(ids)]
        self.logits = self._computed(torch.tensor([ids[num_same:]], device=self._device))

    @property
    def _device(self) -> torch.device:
        return self._model.token_embedding.weight.device

    @torch.no_grad()
    def _computed(self, new: Tensor) -> Tensor:
        """Return the logits [B, V] after tokens [B, T] of the next columns, which `_counts` counts already."""
        start, stop = self._cache.length, self._cache.length + new.shape[1]
        self._ids[:, start:stop] = new
        real = self._real(stop)
        documents = _documents(self._ids[:, :stop], self._document_end, real, start)
        hidden = self._model(new, **documents, padding_mask=real, cache=self._cache)
        return self._model.head.logits(hidden[:, -1])

    def _real(self, stop: int) -> Tensor | None:
        """Return which of the columns before `stop` hold tokens, bool [B, stop]; None if all do."""
        if min(self._counts) == stop:
            return None
        starts = torch.tensor([stop - count for count in self._counts], device=self._device)
        return torch.arange(stop, device=self._device) >= starts[:, None]

    def _restart_full_rows(self) -> None:
        """Drop the older half of each row that fills the window, and compute the rest at its new positions."""
        full = [row for row, count in enumerate(self._counts) if count == self.size]
        if not full:
            return
        index, kept, length = torch.tensor(full, device=self._device), self.size // 2, self._cache.length
        if kept:
            ids = self._ids[index, length - kept : length]
            fresh = self._new_cache(len(full), kept)
            self._model(ids, **_documents(ids, self._document_end, None, 0), cache=fresh)
            self._cache.write_rows(index, fresh)
        for row in full:
            self._counts[row] = kept

    def _drop_columns(self, number: int) -> None:
        """Drop the first columns, in which no row has a token any more."""
        length = self._cache.length
        self._ids[:, : length - number] = self._ids[:, number:length].clone()
        self._cache.drop_first(number)

    def _new_cache(self, num_rows: int, num_columns: int) -> KeyValueCache:
        return KeyValueCache(self._model.config, num_rows, num_columns)


def window_size(model: GPT, context_length: int | None) -> int:
    """Return how many tokens are seen at once."""
    return min(context_length or model.config.max_positions, model.config.max_positions)


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Put the model into evaluation mode, and back into what it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _documents(ids: Tensor, end: DocumentEnd | None, real: Tensor | None, past: int) -> dict[str, Tensor]:
    """Return what the model is told of the documents in rows [B, S], of which the tokens from `past` on are new.

    Args:
        ids: The tokens, int64.
        end: None if attention crosses documents.
        real: bool [B, S], False where a row has padding before its tokens; None if none has.
        past: Tokens that the model has computed before.
    """
    if end is None:
        return {}
    ends = (ids == end.id).long()
    numbers = ends.cumsum(1) - ends
    if not end.restarts_positions:
        return {"document_ids": numbers}
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    begins = torch.nn.functional.pad(ends[:, :-1], (1, 0))
    first = 0 if real is None else (~real).sum(1, keepdim=True)
    starts = torch.where(begins.bool(), columns, first).cummax(1).values
    return {"document_ids": numbers, "positions": (columns - starts).clamp_min(0)[:, past:]}


def _check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    if len(prompt_ids) == 0:
        raise InputError("the prompt has no tokens; give at least one, such as the end-of-text token")
    if min(prompt_ids) < 0 or max(prompt_ids) >= vocab_size:
        wrong = next(token for token in prompt_ids if not 0 <= token < vocab_size)
        raise InputError(f"prompt token {wrong}: the model has tokens 0 to {vocab_size - 1}; use its own tokenizer")
