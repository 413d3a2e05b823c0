"""Parameter groups and the optimizer."""

from typing import Any

import torch
from torch import nn

from modules.config import OptimizerConfig
from modules.model import decayed_parameter_names


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return two groups, matrices with weight decay and all others without; a shared parameter appears once.

    Frozen parameters are in none, and a group without parameters is left out.
    """
    decayed = decayed_parameter_names(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if name in decayed], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), fused into one kernel for each group."""
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)
