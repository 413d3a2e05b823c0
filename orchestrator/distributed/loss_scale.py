"""The loss scale of float16, alike for Lightning's scaler and for DeepSpeed's: what a resumed run must go on with."""

from dataclasses import dataclass
from typing import Any

from pytorch_lightning import Trainer


@dataclass(frozen=True)
class LossScale:
    """What the next steps' scale depends on."""

    scale: float
    good_steps: int
    """Steps since the last overflow, or since it last grew; each time that enough of them have come, it grows."""
    hysteresis: int | None = None
    """Overflows that are let pass before it shrinks; None where the first one shrinks it."""


def read_loss_scale(trainer: Trainer) -> LossScale | None:
    """Return the loss scale of a fit; None where the precision needs none."""
    grad_scaler, zero_scaler = _scalers(trainer)
    if grad_scaler is not None:
        state = grad_scaler.state_dict()
        return LossScale(state["scale"], state["_growth_tracker"])
    if zero_scaler is not None and zero_scaler.dynamic:
        good_steps = zero_scaler.cur_iter - zero_scaler.last_overflow_iter - 1
        return LossScale(zero_scaler.cur_scale, good_steps, zero_scaler.cur_hysteresis)
    return None


def restore_loss_scale(trainer: Trainer, loss_scale: LossScale) -> None:
    """Go on with a loss scale, whichever strategy has saved it."""
    grad_scaler, zero_scaler = _scalers(trainer)
    if grad_scaler is not None:
        state = grad_scaler.state_dict()
        # it grows when the count is just that number
        good_steps = loss_scale.good_steps % state["growth_interval"]
        grad_scaler.load_state_dict({**state, "scale": loss_scale.scale, "_growth_tracker": good_steps})
    elif zero_scaler is not None and zero_scaler.dynamic:
        zero_scaler.cur_scale = loss_scale.scale
        zero_scaler.last_overflow_iter, zero_scaler.cur_iter = -1, loss_scale.good_steps
        zero_scaler.cur_hysteresis = loss_scale.hysteresis or zero_scaler.delayed_shift


def _scalers(trainer: Trainer) -> tuple[Any, Any]:
    """Return torch's GradScaler and DeepSpeed's, one of which there is with float16."""
    grad_scaler = getattr(trainer.precision_plugin, "scaler", None)
    zero_optimizer = getattr(trainer.strategy.model, "optimizer", None)
    return grad_scaler, getattr(zero_optimizer, "loss_scaler", None)
