"""Parameter groups and the optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from modules.config import OptimizerConfig
from modules.model import decayed_parameter_names
from modules.model_config import is_in_a_block
from modules.muon import Muon


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the groups: matrices with weight decay, and all others without; a shared parameter appears once.

    With `muon` the matrices of the blocks are a group of their own, the first. Frozen parameters are in none, and a
    group without parameters is left out.
    """
    decayed = decayed_parameter_names(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    by_muon = {name for name in decayed if config.name == "muon" and is_in_a_block(name)}
    groups = [
        {"params": [p for name, p in named if name in by_muon], **_muon_settings(config)},
        {"params": [p for name, p in named if name in decayed - by_muon], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), fused into one kernel for each group, or Muon."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
    return Muon(groups, **settings) if config.name == "muon" else torch.optim.AdamW(groups, fused=True, **settings)


def set_learning_rate(groups: Iterable[dict[str, Any]], rate: float) -> None:
    """Give each group the learning rate `rate`, times its own factor if it has one."""
    for group in groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def clipped_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return those whose gradient may be clipped: all but Muon's, whose update has the same size whatever it is."""
    return [weight for group in optimizer.param_groups if not group.get("muon") for weight in group["params"]]


def _muon_settings(config: OptimizerConfig) -> dict[str, Any]:
    rate = config.learning_rate if config.matrix_learning_rate is None else config.matrix_learning_rate
    return {
        "muon": True,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "rate_factor": rate / config.learning_rate,
    }
