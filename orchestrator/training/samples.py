"""Texts that the model generates after a validation, at a bounded cost under ZeRO-3.

Each token takes a forward pass, and under ZeRO-3 each pass gathers all weights from all workers. So rank 0 takes a copy
of them, if it has room, and generates alone. If it has none, all generate together, with no more passes than the
validation has taken: the samples are shorter then, and say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from modules.generation.sampler import sample
from modules.generation.sampling import Sampling
from modules.gpt_module import GPTModule
from modules.model import GPT
from orchestrator.distributed.collectives import from_rank_0, rank
from orchestrator.distributed.precision import autocast
from orchestrator.distributed.whole_copy import copy_bytes, free_bytes, is_sharded, whole_copy

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Samples:
    """What the model has generated; on ranks other than 0 it may be empty."""

    rows: list[list[int]]
    """The tokens of each sample, its prompt first."""
    note: str | None = None
    """Why they are shorter than usual."""


def generate(trainer: Trainer, module: GPTModule, sampling: Sampling, most_passes: int) -> Samples:
    """Continue the objective's prompts; all ranks call this together.

    Args:
        module: In evaluation mode.
        sampling: Its `num_sequences` is about the number of samples over all prompts.
        most_passes: Forward passes that may gather all weights; the shortest sample takes one.
    """
    prompts = module.objective.prompts(sampling.num_sequences)
    if not prompts:
        return Samples([])
    sampling = replace(sampling, num_sequences=max(1, sampling.num_sequences // len(prompts)))
    if not is_sharded(module.model):
        return Samples(_rows(prompts, sampling, _together(trainer, prompts, sampling)))
    device = trainer.strategy.root_device
    lack = from_rank_0(lambda: _lack(module.model, device, prompts, sampling))
    if lack is None:
        whole = whole_copy(module.model, is_kept=rank() == 0)
        if whole is None:
            return Samples([])
        with torch.no_grad(), autocast(module.training_config.precision, device):
            return Samples(_rows(prompts, sampling, list(sample(whole, prompts, sampling))))
    length = min(sampling.max_new_tokens, max(1, most_passes))
    note = f"samples have up to {length} tokens instead of {sampling.max_new_tokens}: {lack}"
    is_shorter = length < sampling.max_new_tokens
    sampling = replace(sampling, max_new_tokens=length)
    return Samples(_rows(prompts, sampling, _together(trainer, prompts, sampling)), note if is_shorter else None)


def _lack(model: GPT, device: torch.device, prompts: Prompts, sampling: Sampling) -> str | None:
    """Return what this worker lacks for a copy of all weights; None if it has room."""
    needed = copy_bytes(model) + _cache_bytes(model, prompts, sampling)
    free = free_bytes(device)
    if needed <= free:
        return None
    missing = f"a copy of all weights takes {needed / 1e9:.3g} GB, and worker 0 has room for {free / 1e9:.3g} GB"
    return f"{missing}, so each token gathers them from all workers, no more often than the validation does"


def _cache_bytes(model: GPT, prompts: Prompts, sampling: Sampling) -> int:
    """Return the keys and values of all sequences, in float32."""
    config = model.config
    columns = min(config.max_positions, max(map(len, prompts)) + sampling.max_new_tokens)
    values = 2 * config.num_layers * config.kv_heads * config.width_per_head * columns
    return 4 * values * len(prompts) * sampling.num_sequences


def _together(trainer: Trainer, prompts: Prompts, sampling: Sampling) -> list[Tensor]:
    strategy: Any = trainer.strategy
    return strategy.predict_step((prompts, sampling), 0)


def _rows(prompts: Prompts, sampling: Sampling, tokens: list[Tensor]) -> list[list[int]]:
    begun = (prompt for prompt in prompts for _ in range(sampling.num_sequences))
    # decoded without the prompt, a sample may lose the space before it
    grown = torch.stack(tokens, dim=1).tolist()
    return [[*ids, *_until(row, sampling.end_ids)] for ids, row in zip(begun, grown, strict=True)]


def _until(tokens: list[int], end_ids: tuple[int, ...]) -> list[int]:
    return list(takewhile(lambda token: token not in end_ids, tokens))
