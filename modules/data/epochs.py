"""Whether the sources of a mixture are large enough for a training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modules.data.mixed_data import Schedule
from modules.data.sampler import WindowOrder
from modules.errors import InputError


def check_epochs(schedule: Schedule, num_tokens: Sequence[int], sequence_length: int) -> None:
    """Refuse a training that would read a source more often than its `max_epochs`.

    Args:
        schedule: The training.
        num_tokens: Of the training split of each source.
        sequence_length: Tokens in a sample.

    Raises:
        InputError: With a line for each source that is too small, which says what would fit.
    """
    needs = _Needs(num_tokens, sequence_length)
    lines = [needs.mistake(schedule, number) for number in range(len(num_tokens))]
    if any(lines):
        raise InputError("\n".join(filter(None, lines)))


@dataclass(frozen=True)
class _Needs:
    num_tokens: Sequence[int]
    sequence_length: int

    def mistake(self, schedule: Schedule, number: int) -> str:
        """Return a line about a source if it is too small; else an empty one."""
        source, num_samples = schedule.sources[number], schedule.num_samples
        needed, size = self._samples(schedule, number)
        if source.max_epochs is None or needed <= source.max_epochs * size:
            return ""
        allowed = int(source.max_epochs * size)
        steps = self._most_steps(schedule, number, allowed)
        fits = [
            f"max_epochs={_rounded_up(needed / size):g}",
            f"at most {100 * allowed / num_samples:.3g} % of the samples, not {100 * needed / num_samples:.3g} %",
            *([f"training.num_steps={steps}"] if steps else []),
            f"at least {self._tokens(needed / source.max_epochs):,} tokens of it, not {self.num_tokens[number]:,}",
        ]
        return (
            f"source {source.name}: the training takes {needed:,} samples of it, which are {needed / size:.3g} epochs "
            f"of {size:,}, and max_epochs={source.max_epochs:g} allows {allowed:,}; what fits: {', or '.join(fits)}"
        )

    def _samples(self, schedule: Schedule, number: int) -> tuple[int, int]:
        """Return how many samples of a source a training takes, and how many there are in an epoch."""
        # a seed, or groups, would change their order alone
        mixture = schedule.mixture([WindowOrder(tokens, self.sequence_length, seed=0) for tokens in self.num_tokens])
        return int(mixture.counts(schedule.num_samples)[number]), mixture.epoch_sizes[number]

    def _tokens(self, num_samples: float) -> int:
        """Return the fewest tokens of a text with so many samples in an epoch."""
        return (math.ceil(num_samples) + 1) * self.sequence_length

    def _most_steps(self, schedule: Schedule, number: int, allowed: int) -> int:
        """Return a number of steps for which a source is large enough, to a step the largest.

        0 if there is none, or if some phases have lengths of their own.
        """
        if any(phase.steps is not None for phase in schedule.objective.phases):
            return 0
        needed, _ = self._samples(schedule, number)
        steps = schedule.num_steps * allowed // needed
        while steps and self._samples(replace(schedule, num_steps=steps), number)[0] > allowed:
            steps -= 1
        return steps


def _rounded_up(value: float) -> float:
    return math.ceil(value * 100) / 100
