"""How often to save: what saves cost, against what faults cost."""

import math


def young_seconds(cost_seconds: float, mtbf_seconds: float) -> float:
    """Return the time between saves that loses least to saves and to faults together.

    Source: Young 1974, A first order approximation to the optimum checkpoint interval, CACM 17(9).
    """
    return math.sqrt(2 * cost_seconds * mtbf_seconds)


def goodput_bound(cost_seconds: float, mtbf_seconds: float, recovery_seconds: float) -> float:
    """Return the share of a run's time that can go into steps that last, when it is saved as `young_seconds` advises.

    Of each stretch between two faults the saves and the steps that are lost take `sqrt(2 C / M)`, and the restart
    `R / M`.

    Args:
        cost_seconds: C, that training waits for one save.
        mtbf_seconds: M, mean time between faults.
        recovery_seconds: R, from a fault until training goes on.

    Source: Young 1974, A first order approximation to the optimum checkpoint interval, CACM 17(9).
    """
    return 1 - math.sqrt(2 * cost_seconds / mtbf_seconds) - recovery_seconds / mtbf_seconds
