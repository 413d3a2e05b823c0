"""Muon under ZeRO, which gives the optimizer flat ranges of all matrices: they are whole while it orthogonalises them.

DeepSpeed 0.19.8 has a Muon of its own, which is not used: it orthogonalises before the gradient's norm is known and
clipped, moves its momentum in a step that the guard skips, takes one matrix after another, and has kernels that need a
compiler. Here DeepSpeed clips nothing, and the step of the optimizer, which the guard admits or skips, does it all.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from modules.muon import Muon, dtype_of_products, scale_of
from modules.optimizer import clipped_parameters
from orchestrator.distributed.sharded_matrices import Piece, ShardedMatrices
from orchestrator.errors import ConfigError


class _ZeroShards:
    """The matrices of each of ZeRO's flat partitions."""

    def __init__(self, partitions: dict[Tensor, ShardedMatrices]) -> None:
        self._partitions = partitions

    def replace(self, flat: Tensor, update: Tensor, function: Callable[[list[Tensor]], list[Tensor]]) -> None:
        partition = self._partitions[flat]
        partition.replace(update, function, [scale_of(shape) for shape in partition.shapes])


def prepare_muon(zero: Any, stage: int, device: torch.device, max_norm: float | None) -> None:
    """Let the optimizer of `zero`, DeepSpeed's wrapper, orthogonalise whole matrices, and clip all but them.

    Raises:
        ConfigError: DeepSpeed has put another optimizer in the place of Muon.
    """
    optimizer = zero.optimizer
    if not isinstance(optimizer, Muon):
        raise ConfigError(
            f"optimizer.name=muon: with these settings of strategy.deepspeed DeepSpeed takes "
            f"{type(optimizer).__name__} instead; leave them out, or choose optimizer=adamw"
        )
    rank, num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    partitions = _partitions_of_stage_3(zero, num_workers) if stage == 3 else _partitions(zero, num_workers)
    optimizer.shards = _ZeroShards(
        {
            flat: ShardedMatrices(shapes, pieces, rank, num_workers, device, dtype_of_products(device))
            for flat, shapes, pieces in partitions
        }
    )
    if max_norm is not None:
        _clip_the_rest(optimizer, zero, max_norm)


_Partition = tuple[Tensor, list[tuple[int, int]], list[Piece]]
"""A flat partition of this worker, the shapes of its matrices, and every worker's pieces of them."""


def _partitions(zero: Any, num_workers: int) -> Iterator[_Partition]:
    """Yield those of stages 1 and 2: the parameters of a group lie end to end, cut into equal ranges."""
    for index, group in enumerate(zero.optimizer.param_groups):
        if not group.get("muon"):
            continue
        size, pieces = int(zero.partition_size[index]), []
        parameters = zero.round_robin_bit16_groups[index]
        for matrix, (parameter, begin) in enumerate(
            zip(parameters, zero.round_robin_bit16_offsets[index], strict=True)
        ):
            for worker in range(num_workers):
                start = max(int(begin), worker * size)
                stop = min(int(begin) + parameter.numel(), (worker + 1) * size)
                if start < stop:
                    pieces.append(Piece(worker, matrix, start - int(begin), stop - int(begin), start - worker * size))
        yield zero.single_partition_of_fp32_groups[index], [tuple(each.shape) for each in parameters], pieces


def _partitions_of_stage_3(zero: Any, num_workers: int) -> Iterator[_Partition]:
    """Yield those of stage 3: each worker has an equal range of every parameter, one after another."""
    for index, parameters in enumerate(zero.fp16_groups):
        if not zero.optimizer.param_groups[zero.sub_group_to_group_id[index]].get("muon"):
            continue
        pieces, offset = [], 0
        for matrix, parameter in enumerate(parameters):
            size = parameter.ds_tensor.ds_numel
            for worker in range(num_workers):
                start, stop = worker * size, min((worker + 1) * size, parameter.ds_numel)
                if start < stop:
                    pieces.append(Piece(worker, matrix, start, stop, offset))
            offset += size
        yield zero.fp32_partitioned_groups_flat[index], [tuple(each.ds_shape) for each in parameters], pieces


def _clip_the_rest(optimizer: Muon, zero: Any, max_norm: float) -> None:
    update = optimizer.step

    def step() -> None:
        # ZeRO steps group by group, and the norm is that of all of them
        norm = torch.as_tensor(zero._global_grad_norm)
        torch.nn.utils.clip_grads_with_norm_(clipped_parameters(optimizer), max_norm, norm)
        update()

    optimizer.step = step  # type: ignore[method-assign]
