"""How often to save: the cost of saves against the cost of faults."""

import math


def young_seconds(cost_seconds: float, mtbf_seconds: float) -> float:
    """Return the time between saves that minimizes the time lost to saves and faults together.

    Source: Young 1974, A first order approximation to the optimum checkpoint interval, CACM 17(9).
    """
    return math.sqrt(2 * cost_seconds * mtbf_seconds)


def goodput_bound(cost_seconds: float, mtbf_seconds: float, recovery_seconds: float) -> float:
    """Return the largest share of a run's time that kept steps can take, with saves every `young_seconds`.

    Saves and lost steps take a share of `sqrt(2 C / M)` of the time between two faults, and the restart `R / M`.

    Args:
        cost_seconds: C, the time that training waits for one save.
        mtbf_seconds: M, mean time between faults.
        recovery_seconds: R, from a fault until training continues.

    Source: Young 1974, A first order approximation to the optimum checkpoint interval, CACM 17(9).
    """
    return 1 - math.sqrt(2 * cost_seconds / mtbf_seconds) - recovery_seconds / mtbf_seconds
