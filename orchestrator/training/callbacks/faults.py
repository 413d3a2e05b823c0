"""Fires a fault that was ordered, on its rank and in the middle of a step."""

import os
import signal
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from modules.gpt_module import GPTModule
from orchestrator.artifacts import artifact
from orchestrator.checkpoints.names import committed_steps, name_of
from orchestrator.distributed.runtime import Runtime
from orchestrator.storage.store import Storage
from orchestrator.training.faults import FaultOrder, damaged

_SIGNALS = {"stop_rank": signal.SIGSTOP, "terminate_rank": signal.SIGTERM}
"""What its kind sends to the rank's process; all others but a spoilt loss kill it."""


class OrderedFault(Callback):
    """Strikes between the forward and the backward pass, while the other ranks wait for this one's gradients.

    A spoilt loss is one that the output head gives, so that gradients and figures follow from it as from any other.
    """

    def __init__(self, order: FaultOrder, storage: Storage, run_name: str, runtime: Runtime) -> None:
        self._order, self._storage, self._run_name, self._runtime = order, storage, run_name, runtime
        self._num_left, self._last_step = 0, -1
        self._corrupts = False

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Find out how often it is still to fire; rank 0 says so."""
        config, rank = self._order.config, self._runtime.rank
        if rank not in (0, config.rank):
            return
        num_left = self._order.num_left()
        if num_left and rank == 0:
            where = f"rank {config.rank} from step {config.at_step} on"
            self._runtime.emit({"kind": "note", "text": f"faults={config.kind}: {where}, {num_left} left to fire"})
        if rank == config.rank and not config.fails_saves:
            self._num_left = num_left
            if config.kind == "nan_loss":
                pl_module.model.head.register_forward_hook(self._corrupt)

    def on_train_batch_start(self, trainer: Trainer, pl_module: GPTModule, batch: Any, batch_idx: int) -> None:
        """Spoil the loss of this micro-batch if that was ordered."""
        self._corrupts = self._order.config.kind == "nan_loss" and self._fires(pl_module.step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Leave validation alone."""
        self._corrupts = False

    def on_before_backward(self, trainer: Trainer, pl_module: GPTModule, loss: torch.Tensor) -> None:
        """Do to the checkpoints and to this process what was ordered."""
        kind = self._order.config.kind
        if kind == "nan_loss" or not self._fires(pl_module.step):
            return
        if self._order.config.damages_checkpoint:
            self._damage_newest()
        os.kill(os.getpid(), _SIGNALS.get(kind, signal.SIGKILL))

    def _fires(self, step: int) -> bool:
        """Whether it is due in the step after `step` finished ones; it is counted then."""
        if not self._num_left or step + 1 < self._order.config.at_step or step == self._last_step:
            return False
        # with one alone nothing would be left to go on from
        if self._order.config.damages_checkpoint and len(self._saved_steps()) < 2:
            return False
        if not self._order.count(step):
            return False
        self._num_left, self._last_step = self._num_left - 1, step
        return True

    def _corrupt(self, head: torch.nn.Module, arguments: Any, loss: torch.Tensor) -> torch.Tensor | None:
        return loss * torch.nan if self._corrupts else None

    def _damage_newest(self) -> None:
        name = name_of(self._run_name, self._saved_steps()[-1])
        entries = artifact.file_entries(artifact.read_manifest(self._storage, name))
        # any of them makes the checkpoint unusable, and the whole file passes through memory
        smallest = min((file for file in entries if file.endswith(".safetensors")), key=lambda f: entries[f].num_bytes)
        data = self._storage.read_bytes(f"{name}/{smallest}")
        self._storage.write_bytes(f"{name}/{smallest}", damaged(data, self._order.config.kind))

    def _saved_steps(self) -> list[int]:
        return committed_steps(self._storage, self._run_name)
