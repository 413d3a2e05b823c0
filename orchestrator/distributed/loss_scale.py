"""The loss scale of float16, which a resumed run must keep; one form for Lightning's and DeepSpeed's scalers."""

from dataclasses import dataclass
from typing import Any

from pytorch_lightning import Trainer


@dataclass(frozen=True)
class LossScale:
    """The state on which the scale of the next steps depends."""

    scale: float
    good_steps: int
    """Steps since the last overflow or since the scale last grew; it grows each time that enough have passed."""
    hysteresis: int | None = None
    """The number of overflows that shrink the scale; None if the first one does."""


def read_loss_scale(trainer: Trainer) -> LossScale | None:
    """Return the loss scale of a fit; None if the precision needs none."""
    grad_scaler, zero_scaler = _scalers(trainer)
    if grad_scaler is not None:
        state = grad_scaler.state_dict()
        return LossScale(state["scale"], state["_growth_tracker"])
    if zero_scaler is not None and zero_scaler.dynamic:
        good_steps = zero_scaler.cur_iter - zero_scaler.last_overflow_iter - 1
        return LossScale(zero_scaler.cur_scale, good_steps, zero_scaler.cur_hysteresis)
    return None


def restore_loss_scale(trainer: Trainer, loss_scale: LossScale) -> None:
    """Continue with a loss scale, whichever strategy saved it."""
    grad_scaler, zero_scaler = _scalers(trainer)
    if grad_scaler is not None:
        state = grad_scaler.state_dict()
        # the scale grows only when the count equals the interval exactly
        good_steps = loss_scale.good_steps % state["growth_interval"]
        grad_scaler.load_state_dict({**state, "scale": loss_scale.scale, "_growth_tracker": good_steps})
    elif zero_scaler is not None and zero_scaler.dynamic:
        zero_scaler.cur_scale = loss_scale.scale
        zero_scaler.last_overflow_iter, zero_scaler.cur_iter = -1, loss_scale.good_steps
        zero_scaler.cur_hysteresis = loss_scale.hysteresis or zero_scaler.delayed_shift


def _scalers(trainer: Trainer) -> tuple[Any, Any]:
    """Return torch's GradScaler and DeepSpeed's loss scaler; with float16 one of the two exists."""
    grad_scaler = getattr(trainer.precision_plugin, "scaler", None)
    zero_optimizer = getattr(trainer.strategy.model, "optimizer", None)
    return grad_scaler, getattr(zero_optimizer, "loss_scaler", None)
