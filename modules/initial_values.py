"""Initial weights: every element a function of seed, parameter and index, so that each rank makes its own range."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from modules.lora import begins_at_zero, is_adapter
from modules.model_config import ModelConfig

VOCABULARY = ("token_embedding.weight", "head.weight")
"""Parameters with a row for each token."""
SCORE = "score.weight"
"""The parameter of a classifier's head."""
HEADS = ("head.weight", SCORE)
"""Parameters of what follows the Transformer; a tied head has none."""
_INITIAL_STD = 0.02
_BLOCK_ELEMENTS = 2**20


def initial_values(
    name: str, shape: tuple[int, ...], start: int, stop: int, seed: int, config: ModelConfig, vocab_size: int
) -> Tensor:
    """Return the initial weights of a parameter's flat range [start, stop); an element is the same in every range.

    Weights are normal with standard deviation 0.02, divided by sqrt(2 x num_layers) in layers that add to the residual
    stream. Biases are 0, norms 1, rows of vocabulary padding 0. An adapter's A is uniform within 1 / sqrt(inputs), and
    its B is 0, as PEFT begins them. Element i comes from number i of a counter-based
    generator (Philox, keyed by seed and name), so each rank computes only the range that it owns.

    Args:
        name: The parameter's name in `GPT.named_parameters()`.
        shape: The whole parameter's shape.
        start: First flat index.
        stop: Flat index after the last.
        seed: The run's seed.
        config: The model's shape.
        vocab_size: Number of tokens; embedding rows from this index on are padding.

    Returns:
        float32, [stop - start].

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3; of adapters
    `reset_lora_parameters` of peft 0.21.2, tuners/lora/layer.py.
    """
    if is_adapter(name):
        return _adapter_values(name, shape, start, stop, seed)
    if name.endswith("norm.weight"):
        return torch.ones(stop - start)
    if name.endswith(".bias"):
        return torch.zeros(stop - start)
    is_residual = name.endswith(("attention.projection.weight", "mlp.down.weight"))
    std = _INITIAL_STD / (2 * config.num_layers) ** 0.5 if is_residual else _INITIAL_STD
    values = torch.empty(stop - start)
    for indices, target in _blocks(start, stop):
        # the inverse of the normal distribution
        values[target] = torch.erfinv(_uniform(f"{seed}:{name}", indices)).mul_(2**0.5)
    values.mul_(std)
    if name in VOCABULARY:
        values[max(0, vocab_size * shape[1] - start) :] = 0
    return values


def _adapter_values(name: str, shape: tuple[int, ...], start: int, stop: int, seed: int) -> Tensor:
    values = torch.zeros(stop - start)
    if not begins_at_zero(name):
        for indices, target in _blocks(start, stop):
            values[target] = _uniform(f"{seed}:{name}", indices)
    return values.mul_(shape[1] ** -0.5)


def _blocks(start: int, stop: int) -> Iterator[tuple[range, slice]]:
    """Yield ranges of bounded size that cover [start, stop), each with its slice of the result."""
    for first in range(start, stop, _BLOCK_ELEMENTS):
        end = min(first + _BLOCK_ELEMENTS, stop)
        yield range(first, end), slice(first - start, end - start)


def _uniform(key: str, indices: range) -> Tensor:
    """Return the numbers in (-1, 1) at `indices` of the stream named by `key`, float32 [len(indices)].

    A Philox block holds eight 32-bit numbers. Each is turned into an odd multiple of 2^-24, which float32 represents
    exactly.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    first = indices.start // 8
    generator = np.random.Philox(key=np.frombuffer(digest, dtype="<u8")).advance(first)
    words = generator.random_raw(-(-indices.stop // 8) * 4 - first * 4).astype("<u8", copy=False).view("<u4")
    words = words[indices.start - first * 8 : indices.stop - first * 8]
    signed = torch.from_numpy((words >> np.uint32(8)).astype(np.int32)) - 2**23
    return signed.float().add_(0.5).mul_(2.0**-23)
