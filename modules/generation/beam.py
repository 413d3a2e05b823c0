"""Beam search, as `transformers` computes it with its defaults.

Shapes: P prompts, N beams of each, K candidates of each, V vocabulary.

Source: `_beam_search` of `transformers` 5.23, generation/utils.py, with `early_stopping=False`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modules.generation.sampling import Sampling, Seen, penalized
from modules.generation.window import Window
from modules.model import GPT

_IMPOSSIBLE = np.float32(-1e9)
"""Added to the score of what may not be chosen."""

IsOver = Callable[[Sequence[int]], bool]
"""Returns whether the text of these new tokens holds a stop string."""


@dataclass(frozen=True)
class Beam:
    """One continuation."""

    ids: tuple[int, ...]
    score: float
    """Sum of the logarithms of the tokens' probabilities, divided by the number of tokens to the length penalty."""


class _Search:
    """The beams of one prompt, and the best continuations that have ended."""

    def __init__(self, num_beams: int, sampling: Sampling, length_penalty: float, is_over: IsOver) -> None:
        self._sampling, self._length_penalty, self._is_over = sampling, length_penalty, is_over
        self._running: list[tuple[int, ...]] = [()] * num_beams
        self._ended: list[tuple[int, ...]] = [()] * num_beams
        self._ended_scores = np.full(num_beams, _IMPOSSIBLE)
        # all begin alike, so only the first may be continued
        self.scores = np.where(np.arange(num_beams) == 0, np.float32(0), _IMPOSSIBLE)
        """float32 [N], the sum of the logarithms of the probabilities of each running beam."""
        self.is_done = False

    def advance(self, scores: np.ndarray, parents: np.ndarray, tokens: np.ndarray) -> list[tuple[int, int]]:
        """Choose the beams that go on among the candidates, and return the parent and the last token of each.

        Args:
            scores: float32 [K], descending.
            parents: int64 [K], the running beam that each continues.
            tokens: int64 [K].
        """
        num_beams = len(self._running)
        candidates = [(*self._running[parent], token) for parent, token in zip(parents, tokens.tolist(), strict=True)]
        length = len(candidates[0])
        over = np.array([length >= self._sampling.max_new_tokens or self._has_ended(ids) for ids in candidates])
        self._keep_ended(candidates, scores, over, length)
        going_on = scores + over * _IMPOSSIBLE
        chosen = np.argsort(-going_on, kind="stable")[:num_beams]
        self._running, self.scores = [candidates[i] for i in chosen], going_on[chosen]
        best_possible = self.scores[0] / np.float32(length**self._length_penalty)
        self.is_done = bool(over.all() or best_possible <= self._ended_scores.min())
        return [(int(parents[i]), int(tokens[i])) for i in chosen]

    def results(self, number: int) -> list[Beam]:
        """Return the best continuations, the best first."""
        best = zip(self._ended[:number], self._ended_scores.tolist(), strict=False)
        return [Beam(ids, score) for ids, score in best]

    def _has_ended(self, ids: tuple[int, ...]) -> bool:
        return ids[-1] in self._sampling.end_ids or self._is_over(ids)

    def _keep_ended(self, candidates: list[tuple[int, ...]], scores: np.ndarray, over: np.ndarray, length: int) -> None:
        # those after the first N are there only so that N beams can go on
        num_beams = len(self._running)
        ending = over & (np.arange(len(candidates)) < num_beams)
        reached = scores / np.float32(length**self._length_penalty) + ~ending * _IMPOSSIBLE
        every, every_score = [*self._ended, *candidates], np.concatenate([self._ended_scores, reached])
        best = np.argsort(-every_score, kind="stable")[:num_beams]
        self._ended, self._ended_scores = [every[i] for i in best], every_score[best]


@torch.no_grad()
def beam_search(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    num_beams: int,
    length_penalty: float,
    are_over: Sequence[IsOver],
) -> list[list[Beam]]:
    """Return the `sampling.num_sequences` best continuations of each prompt, the best first.

    Args:
        model: In evaluation mode, on any device.
        prompts: Token ids.
        sampling: Of its settings those count that draw nothing.
        num_beams: At least `sampling.num_sequences`.
        length_penalty: Above 0 prefers long texts, below 0 short ones.
        are_over: For each prompt, whether new tokens hold a stop string.
    """
    window = Window(
        model,
        prompts,
        num_copies=num_beams,
        max_new_tokens=sampling.max_new_tokens,
        context_length=sampling.context_length,
        document_end=sampling.document_end,
    )
    every = [ids for ids in prompts for _ in range(num_beams)]
    seen = Seen(every, model.vocab_size, window.logits.device) if sampling.repetition_penalty != 1 else None
    searches = [_Search(num_beams, sampling, length_penalty, is_over) for is_over in are_over]
    running = list(searches)
    while True:
        scores, parents, tokens = _candidates(window.logits, running, sampling, seen)
        rows: list[int] = []
        last: list[int] = []
        for number, search in enumerate(running):
            going_on = search.advance(scores[number], parents[number], tokens[number])
            if not search.is_done:
                rows += [number * num_beams + parent for parent, _ in going_on]
                last += [token for _, token in going_on]
        running = [search for search in running if not search.is_done]
        if not running:
            return [search.results(sampling.num_sequences) for search in searches]
        window.select(rows)
        appended = torch.tensor(last, device=window.logits.device)
        if seen is not None:
            seen.select(torch.tensor(rows, device=window.logits.device))
            seen.add(appended)
        window.append(appended)


def _candidates(
    logits: Tensor, running: Sequence[_Search], sampling: Sampling, seen: Seen | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores (float32), parents and tokens of the best continuations by one token, each [P, K], descending."""
    num_beams, vocab_size = len(running[0].scores), logits.shape[-1]
    log_probabilities = penalized(logits.float().log_softmax(-1), seen and seen.mask, sampling.repetition_penalty)
    before = torch.from_numpy(np.concatenate([search.scores for search in running])).to(logits.device)
    total = (log_probabilities + before[:, None]).view(len(running), -1)
    # each beam may end with each end token, and still as many must go on
    number = min(max(2, 1 + len(sampling.end_ids)) * num_beams, total.shape[1])
    scores, places = total.topk(number)
    # the one place where the host waits for the device; float64 holds both exactly
    both = torch.cat([scores.double(), places.double()], dim=1).cpu().numpy()
    host_scores, host_places = both[:, :number].astype(np.float32), both[:, number:].astype(np.int64)
    return host_scores, host_places // vocab_size, host_places % vocab_size
