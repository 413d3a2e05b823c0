"""Inject a requested fault, on its rank and in the middle of a step."""

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
"""Signal that a kind sends to its rank; `kill_rank` and the kinds that damage a checkpoint send SIGKILL."""


class OrderedFault(Callback):
    """Acts between the forward and the backward pass, while the other ranks wait for this one's gradients.

    `nan_loss` changes the output head's loss, so gradients and metrics follow from it as from any other loss.
    """

    def __init__(self, order: FaultOrder, storage: Storage, run_name: str, runtime: Runtime) -> None:
        self._order, self._storage, self._run_name, self._runtime = order, storage, run_name, runtime
        self._num_left, self._last_step = 0, -1
        self._corrupts = False

    def on_fit_start(self, trainer: Trainer, pl_module: GPTModule) -> None:
        """Read how many times the fault must still fire; rank 0 reports it."""
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
        """Make the loss of this micro-batch NaN if that was requested."""
        self._corrupts = self._order.config.kind == "nan_loss" and self._fires(pl_module.step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GPTModule, outputs: Any, batch: Any, index: int) -> None:
        """Stop changing the loss, so that a validation is not affected."""
        self._corrupts = False

    def on_before_backward(self, trainer: Trainer, pl_module: GPTModule, loss: torch.Tensor) -> None:
        """Damage a checkpoint or signal this process, as requested."""
        kind = self._order.config.kind
        if kind == "nan_loss" or not self._fires(pl_module.step):
            return
        if self._order.config.damages_checkpoint:
            self._damage_newest()
        os.kill(os.getpid(), _SIGNALS.get(kind, signal.SIGKILL))

    def _fires(self, step: int) -> bool:
        """Return whether the fault fires in the step after `step` finished ones; if so, it is recorded."""
        if not self._num_left or step + 1 < self._order.config.at_step or step == self._last_step:
            return False
        # with a single checkpoint nothing would be left to continue from
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
        # damage to any file makes the checkpoint unusable; the smallest one needs the least memory
        smallest = min((file for file in entries if file.endswith(".safetensors")), key=lambda f: entries[f].num_bytes)
        data = self._storage.read_bytes(f"{name}/{smallest}")
        self._storage.write_bytes(f"{name}/{smallest}", damaged(data, self._order.config.kind))

    def _saved_steps(self) -> list[int]:
        return committed_steps(self._storage, self._run_name)
