"""The order of a mixture as it is defined, sample by sample and slowly."""

import random
from collections.abc import Sequence
from fractions import Fraction


def plain(whole: Sequence[int], num_samples: int) -> list[int]:
    """Tijdeman's rule as it is written down, sample by sample."""
    shares = [Fraction(weight, sum(whole)) for weight in whole]
    active = [source for source, weight in enumerate(whole) if weight]
    least = Fraction(1, 2 * len(active) - 2) if len(active) > 1 else Fraction(0)
    counts, found = [0] * len(whole), []
    for number in range(1, num_samples + 1):
        behind = {source: number * shares[source] - counts[source] for source in active}
        may_come = [source for source in active if behind[source] >= least]
        chosen = min(may_come, key=lambda source: ((1 - least - behind[source]) / shares[source], source))
        counts[chosen] += 1
        found.append(chosen)
    return found


def drawn(rng: random.Random, most: int) -> list[int]:
    numbers = [rng.choice((0, rng.randint(1, 5), rng.randint(1, most))) for _ in range(rng.randint(1, 9))]
    return numbers if any(numbers) else [1]
