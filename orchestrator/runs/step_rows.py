"""What a step of a run has learned from, as it is shown and written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

Losses = Mapping[str, float]
"""Mean loss of the predicted tokens, in nats, by the name of the loss; one that predicts none of them is left out."""


@dataclass(frozen=True)
class PartRow:
    """A document, as far as it lies in a sample's window; or an example."""

    file: str | None
    """The file that it comes from; None where an earlier version has prepared the data."""
    row: int | None
    """The row of that file, counted from 0; 0 in plain text."""
    is_begun: bool
    """Whether the document begins before the window."""
    text: str
    """As far as it lies in the window; of an example, its prompt."""
    num_tokens: int
    target: str | None = None
    """What an example teaches to answer: a text, or the name of a class."""
    losses: Losses = field(default_factory=dict)


@dataclass(frozen=True)
class SampleRow:
    """A sample of a step."""

    sample: int
    """Counted from 0 over the whole training."""
    worker: int | None
    """The rank that has computed it; None where an earlier version has not recorded it."""
    source: str
    """Of a mixture; empty without one."""
    position: int
    """Where the window begins among the training tokens of its source; of examples, the number of the pack."""
    num_tokens: int
    parts: Sequence[PartRow]
    losses: Losses = field(default_factory=dict)
    num_targets: Mapping[str, float] = field(default_factory=dict)
    """Of each loss: the number of predicted tokens, or the sum of their weights."""
    loss: float | None = None
    """`losses`, weighted as in the step; None without a checkpoint."""


def sorted_by_loss(samples: Sequence[SampleRow], weights: Mapping[str, float]) -> list[SampleRow]:
    """Return samples with the highest loss first, and so their documents; those without a predicted token last."""

    def of_part(part: PartRow) -> float:
        return weighted(part.losses, weights) if part.losses else -math.inf

    by_part = [replace(one, parts=sorted(one.parts, key=of_part, reverse=True)) for one in samples]
    return sorted(by_part, key=lambda one: -math.inf if one.loss is None else one.loss, reverse=True)


def weighted(losses: Losses, weights: Mapping[str, float]) -> float:
    """Return the sum of losses, weighted as in a step; of a document that lacks one of them, by the others' weights."""
    whole, there = sum(weights.values()), sum(weights[name] for name in losses)
    return sum(weights[name] * loss for name, loss in losses.items()) * (whole / there if there else 1.0)


@dataclass(frozen=True)
class StepRow:
    """A step."""

    step: int
    """Counted from 1."""
    data_step: int
    """Counted from 0."""
    first_sample: int
    last_sample: int
    weights: Mapping[str, float]
    """Of the losses, in this step."""
    phase: tuple[int, int] | None
    """The number of the phase, from 1, and how many there are; None where there are no phases."""
    world_size: int
    notes: Sequence[str] = ()
    """Lines about what has become of the step."""
