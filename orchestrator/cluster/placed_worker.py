"""A worker whose place in the run stands in the environment, as torchrun and torch's elastic agent write it."""

import os

import torch

from modules.cores import num_cores
from orchestrator.distributed.runtime import Runtime

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a worker cannot do without: who it is, and where the workers meet."""


def placed_runtime(use_gpu: bool) -> Runtime:
    """Return this worker's position in the run."""
    local_rank = int(os.environ["LOCAL_RANK"])
    return Runtime(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=local_rank,
        # the agent counts the nodes; without it Slurm does
        node_rank=int(os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or 0),
        device=f"cuda:{local_rank}" if use_gpu else "cpu",
    )


def take_share_of_cores() -> None:
    """Compute with this worker's share of the cores; where a scheduler has bound it to some, it sees those alone."""
    torch.set_num_threads(max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
