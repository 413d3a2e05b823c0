"""Parameter groups, the optimizer, and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn

from modules.config import OptimizerConfig
from modules.model import decayed_parameter_names


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return two groups, matrices with weight decay and all others without; a shared parameter appears once."""
    decayed = decayed_parameter_names(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), fused into one kernel for each group."""
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of a step, counted from 0: a pure function, so a resumed run gets the same rates.

    Step s of the warm-up has `learning_rate * (s + 1) / warmup_steps`. After it, the rate falls to
    `min_learning_rate` at the last step, `num_steps - 1`, and stays there: `cosine` (Loshchilov and Hutter 2017,
    arXiv 1608.03983), `linear`, or `wsd`, which is constant until the last `decay_fraction` of all steps and then
    linear (Hu et al. 2024, arXiv 2404.06395). `constant` never falls.
    """
    highest, lowest = config.learning_rate, config.min_learning_rate
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    decay_start = config.warmup_steps
    if config.schedule == "wsd":
        decay_start = max(decay_start, round(num_steps * (1 - config.decay_fraction)))
    if config.schedule == "constant" or step < decay_start:
        return highest
    # The step before the decay has the highest rate, so step `decay_start` is the first one below it.
    done = min(1.0, (step - decay_start + 1) / max(1, num_steps - decay_start))
    share = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return lowest + (highest - lowest) * share
