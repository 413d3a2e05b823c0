"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864).

Shapes: B batch, T positions, H heads, W width of a head.
"""

import math

import numpy as np
import torch
from torch import Tensor

from modules.model_config import ModelConfig, RopeScaling


class Rotary:
    """The rotations of positions. It is no module: a buffer would be rounded when a model is made bfloat16."""

    def __init__(self, config: ModelConfig) -> None:
        self._frequencies = rotary_frequencies(config.width_per_head, config.rope_theta, config.rope_scaling)

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines, and sines with the sign of their term, float32 [..., T, 1, W], of positions [..., T]."""
        if self._frequencies.device != positions.device:
            self._frequencies = self._frequencies.to(positions.device)
        angles = positions[..., None].float() * self._frequencies
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat([cosines, cosines], -1)[..., None, :], torch.cat([-sines, sines], -1)[..., None, :]


def rotate(x: Tensor, rotations: tuple[Tensor, Tensor]) -> Tensor:
    """Return queries or keys [B, T, H, W], float32, rotated by their positions; element i is paired with i + W/2."""
    cosines, sines = rotations
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, -1), sines)


def rotary_frequencies(width: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Return the angle between neighbouring positions of each pair of elements, float32 [width / 2].

    Source: `llama3` as in `apply_scaling` of meta-llama/llama-models, models/llama3/model.py.
    """
    # by numpy, because ZeRO-3 replaces torch's constructors while it builds a model, and rounds what they make
    exponents = torch.from_numpy(np.arange(0, width, 2)).float() / width
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_max_positions / (2 * math.pi / frequencies)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
