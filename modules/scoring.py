"""How likely a model finds given tokens.

Shapes: N positions of a row that holds sequences one after another, P predicted tokens, V vocabulary.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from modules.errors import InputError
from modules.model import GPT

_MOST_LOGITS = 2**26
"""Logits in memory at once: 256 MiB in float32."""


class TargetTokens(NamedTuple):
    """Tokens that a model sees, and those that follow."""

    input_ids: tuple[int, ...]
    """All tokens but the last one predicted."""
    target_ids: tuple[int, ...]
    """What follows each of the last positions of `input_ids`; at most as many."""


class Likelihood(NamedTuple):
    """How likely a model finds the targets."""

    log_likelihood: float
    """In nats: the sum of the logarithms of the targets' probabilities."""
    is_greedy: bool
    """Whether each target is the most likely token."""


@torch.no_grad()
def likelihoods(model: GPT, wanted: Sequence[TargetTokens]) -> list[Likelihood]:
    """Return the likelihood of all targets, computed at once and without padding.

    The same input is computed once, such as that of several answers of one token. Only positions that predict a target
    enter the output head.

    Args:
        model: In evaluation mode, on any device.
        wanted: Each with an input no longer than the model's positions.

    Raises:
        InputError: A token is outside the vocabulary.
    """
    inputs = sorted({one.input_ids for one in wanted}, key=len, reverse=True)
    _check_tokens(model, [*inputs, *(one.target_ids for one in wanted)])
    device = model.token_embedding.weight.device
    row = torch.tensor([list(chain.from_iterable(inputs))], device=device)
    hidden = model(row, lengths=[len(ids) for ids in inputs])[0]
    ends, end = {}, 0
    for ids in inputs:
        end += len(ids)
        ends[ids] = end
    stops = [ends[one.input_ids] for one in wanted]
    numbers = [len(one.target_ids) for one in wanted]
    positions = [place for stop, number in zip(stops, numbers, strict=True) for place in range(stop - number, stop)]
    targets = list(chain.from_iterable(one.target_ids for one in wanted))
    values, is_highest = target_likelihoods(model, hidden, torch.tensor(positions), torch.tensor(targets))
    pieces = zip(values.split(numbers), is_highest.split(numbers), strict=True)
    return [Likelihood(float(one.sum()), bool(highest.all())) for one, highest in pieces]


def target_likelihoods(model: GPT, hidden: Tensor, positions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood of each target, float64 [P], and whether it is the most likely token, bool [P].

    Args:
        model: A language model, in evaluation mode.
        hidden: Hidden states [N, D] of a row.
        positions: [P], int64, those of it that predict a target; few logits are in memory at once.
        targets: [P], int64.
    """
    num_positions = max(1, _MOST_LOGITS // model.vocab_size)
    values, is_highest = [], []
    for places, numbers in zip(positions.split(num_positions), targets.split(num_positions), strict=True):
        logits = model.head.logits(hidden[places.to(hidden.device)]).float()
        numbers = numbers.to(hidden.device)
        values.append(logits.log_softmax(-1).gather(1, numbers[:, None])[:, 0].double().cpu())
        is_highest.append((logits.argmax(-1) == numbers).cpu())
    return torch.cat(values), torch.cat(is_highest)


def _check_tokens(model: GPT, every_ids: Sequence[Sequence[int]]) -> None:
    largest = max(map(max, every_ids))
    if largest >= model.vocab_size:
        raise InputError(
            f"token {largest}: the model has rows for tokens 0 to {model.vocab_size - 1}; it needs its own tokenizer"
        )
