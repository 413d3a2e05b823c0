"""The order in which callbacks run after a step, with the reasons. Each hook runs in the order of this list."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from pytorch_lightning import Callback

ORDER: tuple[tuple[str, str], ...] = (
    ("ClipGradients", "the gradient norm must be known before it is judged or reported"),
    ("DeepSpeedGradientNorm", "the same where DeepSpeed clips"),
    ("SkipBadSteps", "a bad step is counted, or a rollback begins, before the step is saved or reported as good"),
    ("Throughput", "the step is counted before saves and validations stop the clock"),
    ("Checkpoints", "the step is saved before anything below can fail"),
    ("Metrics", "the metrics include the cost of saving this step"),
    ("Validation", "its metrics score a checkpoint that exists already, for checkpoint.keep_best"),
    ("Preemption", "a run that has to stop ends after everything that belongs to its last step"),
    ("GarbageCollection", "what all of the above have left behind goes, too"),
    ("Watchdog", "a step ends when all of the above has ended, so that a hanging save is detected"),
    ("OrderedFault", "a requested fault does not keep the others from finishing the step"),
)
"""Class name of each callback, and the reason why it runs before those below it."""

_POSITIONS = {name: position for position, (name, _) in enumerate(ORDER)}


class _Together(Callback):
    """Several callbacks as one, which calls only what they have.

    Lightning calls every hook of every callback, and each empty one takes 2 µs, of which a step has fifty.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks
        for name in vars(Callback):
            if name.startswith("on_") or name in ("setup", "teardown"):
                acting = [getattr(one, name) for one in callbacks if _has(one, name)]
                # Lightning calls what can be called; around a call of nothing it would measure time as well
                setattr(self, name, partial(_call_all, acting) if acting else None)


def _has(callback: Callback, hook: str) -> bool:
    return getattr(type(callback), hook) is not getattr(Callback, hook)


def _call_all(hooks: Iterable[Callable[..., None]], *args: Any, **kwargs: Any) -> None:
    for hook in hooks:
        hook(*args, **kwargs)


def in_order(callbacks: Iterable[Callback]) -> _Together:
    """Return callbacks as one, in the order of `ORDER`.

    Raises:
        ValueError: one of them is not in `ORDER`.
    """
    found = list(callbacks)
    for callback in found:
        if type(callback).__name__ not in _POSITIONS:
            raise ValueError(
                f"{type(callback).__name__} is not in ORDER of callbacks/order.py; add it there, with the reason"
            )
    return _Together(sorted(found, key=lambda callback: _POSITIONS[type(callback).__name__]))
