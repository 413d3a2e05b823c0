"""What a model makes of single examples: log probabilities of classes, and losses of the tokens to predict.

Examples are computed together, one after another in a single row without padding, so each has the result that it has
alone. Shapes: E examples, C classes, D width, M targets, N positions of all examples.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from modules.classifier import class_logits
from modules.errors import InputError
from modules.model import GPT
from modules.scoring import target_likelihoods
from modules.tasks.task import Example


class ExampleLoss(NamedTuple):
    """How well the targets of an example are predicted."""

    nats: float
    """Sum of the losses."""
    num_targets: int


@torch.no_grad()
def class_log_probabilities(model: GPT, every_ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return for each text the natural logarithm of the probability of each class.

    Args:
        model: A classifier, in evaluation mode.
        every_ids: The tokens of each text, at least one.

    Raises:
        InputError: The model has no row for a token.
    """
    _check_rows(model, every_ids)
    order = _by_length(every_ids)
    row, lengths = _row(model, [every_ids[number] for number in order])
    found = class_logits(model, row, lengths).double().log_softmax(-1).tolist()
    return [logs for _, logs in sorted(zip(order, found, strict=True))]


@torch.no_grad()
def example_losses(model: GPT, examples: Sequence[Example]) -> list[ExampleLoss]:
    """Return the loss of each example's targets.

    Args:
        model: A language model, in evaluation mode.
        examples: Each with a target.

    Raises:
        InputError: The model has no row for a token.
    """
    _check_rows(model, [example.ids for example in examples])
    # nothing follows the last token that it could predict
    inputs = [example.ids[:-1] for example in examples]
    order = _by_length(inputs)
    row, lengths = _row(model, [inputs[number] for number in order])
    hidden = model(row, lengths=lengths)[0]
    places, targets, counts = _targets([examples[number] for number in order])
    found, _ = target_likelihoods(model, hidden, torch.tensor(places), torch.tensor(targets))
    nats = [-float(values.sum()) for values in found.split(counts)]
    return [one for _, one in sorted(zip(order, map(ExampleLoss, nats, counts), strict=True))]


def _targets(examples: Sequence[Example]) -> tuple[list[int], list[int], list[int]]:
    """Return the positions [M] in the row whose hidden states predict a target, the targets [M], and counts [E]."""
    places: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    start = 0
    for example in examples:
        own = [place for place, is_target in enumerate(example.is_target) if is_target]
        places += [start + place - 1 for place in own]
        targets += [example.ids[place] for place in own]
        counts.append(len(own))
        start += len(example.ids) - 1
    return places, targets, counts


def _row(model: GPT, every_ids: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    device = model.token_embedding.weight.device
    return torch.tensor([list(chain(*every_ids))], device=device), list(map(len, every_ids))


def _by_length(every_ids: Sequence[Sequence[int]]) -> list[int]:
    """Return the places in an order in which equal lengths, which attention computes together, are neighbours."""
    return sorted(range(len(every_ids)), key=lambda number: len(every_ids[number]))


def _check_rows(model: GPT, every_ids: Sequence[Sequence[int]]) -> None:
    largest = max(map(max, every_ids))
    if largest >= model.vocab_size:
        raise InputError(
            f"the text has token {largest}, and the model has rows for tokens 0 to {model.vocab_size - 1}; it needs "
            "the tokenizer and the chat template that it was trained with"
        )
