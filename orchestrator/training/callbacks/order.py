"""The order in which callbacks act after a step, and why: each hook runs through this list from its start."""

from collections.abc import Iterable

from pytorch_lightning import Callback

ORDER: tuple[tuple[str, str], ...] = (
    ("ClipGradients", "the gradient's norm is known before anybody judges or reports it"),
    ("DeepSpeedGradientNorm", "as above, where DeepSpeed clips"),
    ("SkipBadSteps", "a bad step is counted, or the run goes back, before the step is saved or reported as a good one"),
    ("Throughput", "the step is counted before saves and validations stop the clock"),
    ("Checkpoints", "the step is safe before anything below can fail"),
    ("Metrics", "figures hold what the save of this step has cost"),
    ("Validation", "its figures rate a checkpoint that is there already, for checkpoint.keep_best"),
    ("Preemption", "a run that is told to stop ends after everything that belongs to its last step"),
    ("Watchdog", "a step has ended when all of the above has: a save that hangs is found"),
    ("OrderedFault", "a fault that was ordered strikes a step that is otherwise complete"),
)
"""Name of each callback's class, and why it stands before those below it."""

_PLACES = {name: place for place, (name, _) in enumerate(ORDER)}


def in_order(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return callbacks in the order of `ORDER`.

    Raises:
        ValueError: one of them has no place in it.
    """
    found = list(callbacks)
    for callback in found:
        if type(callback).__name__ not in _PLACES:
            raise ValueError(
                f"{type(callback).__name__} has no place in callbacks/order.py; give it one, with the reason"
            )
    return sorted(found, key=lambda callback: _PLACES[type(callback).__name__])
