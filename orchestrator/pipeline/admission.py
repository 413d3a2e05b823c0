"""What each stage needs of the machine or the cluster, and what is left of it while stages run."""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modules.config import Config
from modules.cores import num_cores
from orchestrator.configuration.commands import ModelPath, TrainingRunConfig
from orchestrator.configuration.rules import worker_counts
from orchestrator.errors import HardwareError

_DEVICES = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Resources:
    """Processor cores and GPUs."""

    cpus: float
    gpus: int = 0

    def covers(self, need: "Resources") -> bool:
        """Return whether a need fits into this."""
        return need.cpus <= self.cpus and need.gpus <= self.gpus

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs" + (f" and {self.gpus} GPUs" if self.gpus else "")


@dataclass(frozen=True)
class Share:
    """What one stage gets."""

    resources: Resources
    num_workers: int = 1
    is_fixed: bool = False
    """Its number of workers could change, and is kept while other stages run."""
    gpu_ids: tuple[str, ...] = ()


def machine() -> Resources:
    """Return what this machine has, found without torch."""
    return Resources(float(num_cores()), len(_gpu_ids()))


def _gpu_ids() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(_DEVICES.iterdir())] if _DEVICES.is_dir() else []


def need_of(config: Config, num_workers: int, total: Resources) -> Resources:
    """Return what a command needs with so many workers; one that does not train is a single process.

    Where there are GPUs, whoever only uses a model takes one, as it does by hand.
    """
    if not isinstance(config, TrainingRunConfig):
        computes = isinstance(getattr(config, "model", None), ModelPath)
        return Resources(1.0, min(total.gpus, int(computes)))
    cluster = config.cluster
    gpus = num_workers * cluster.gpus_per_worker if cluster.gpus_per_worker is not None else num_workers
    if cluster.gpus_per_worker is None and gpus > total.gpus:
        gpus = 0  # without enough of them, it takes none
    return Resources(num_workers * cluster.cpus_per_worker, gpus)


def _counts(config: Config) -> list[int]:
    return worker_counts(config) if isinstance(config, TrainingRunConfig) else [1]


def check_fits(configs: Mapping[str, Config], total: Resources, where: str) -> None:
    """Raise HardwareError with a line for each command that can never run.

    Args:
        configs: The configuration of each by what a message calls it.
        total: All that there is.
        where: What has it.
    """
    needs = {name: need_of(config, _counts(config)[0], total) for name, config in configs.items()}
    lines = [
        f"{name}: needs {need}, and {where} has {total}; lower its cluster.num_workers or cluster.cpus_per_worker"
        for name, need in needs.items()
        if not total.covers(need)
    ]
    if lines:
        raise HardwareError("\n".join(lines))


class SharedLedger(Protocol):
    """What all drivers of a cluster have reserved."""

    def left(self) -> tuple[float, float]:
        """Return the CPUs and GPUs that nobody has reserved."""
        ...

    def take(self, what: str, cpus: float, gpus: float) -> bool:
        """Reserve, unless that is more than is left; return whether it was."""
        ...

    def give_back(self, what: str) -> None:
        """Give back what was reserved under a name."""
        ...


class Ledger:
    """What the running stages of this driver hold; a stage begins with what is left."""

    def __init__(self, total: Resources, shared: SharedLedger | None = None) -> None:
        """Take what there is.

        Args:
            total: All that there is.
            shared: Where other drivers reserve, too; None on one machine.
        """
        self.total, self._shared = total, shared
        self._free_gpus = [] if shared else _gpu_ids()
        self._held: dict[str, Share] = {}
        self._lock = threading.Lock()

    @property
    def left(self) -> Resources:
        """What no stage holds."""
        if self._shared is not None:
            cpus, gpus = self._shared.left()
            return Resources(cpus, int(gpus))
        shares = [share.resources for share in self._held.values()]
        cpus, gpus = sum(share.cpus for share in shares), sum(share.gpus for share in shares)
        return Resources(self.total.cpus - cpus, self.total.gpus - gpus)

    def reserve(self, name: str, config: Config, is_alone: bool) -> Share | None:
        """Return the share of a stage, the largest that fits; None if none does.

        Args:
            name: The stage.
            config: Its configuration.
            is_alone: No other stage runs or could run: a number of workers that may change is left to change.
        """
        counts = _counts(config)
        with self._lock:
            left = self.left
            for number in reversed(counts):
                need = need_of(config, number, self.total)
                if left.covers(need) and self._take(name, need):
                    ids = tuple(self._free_gpus[: need.gpus])
                    self._free_gpus = self._free_gpus[need.gpus :]
                    self._held[name] = Share(need, number, len(counts) > 1 and not is_alone, ids)
                    return self._held[name]
        return None

    def _take(self, name: str, need: Resources) -> bool:
        return self._shared is None or self._shared.take(name, need.cpus, need.gpus)

    def release(self, name: str) -> None:
        """Give back what a stage holds."""
        with self._lock:
            share = self._held.pop(name, None)
            if share is not None:
                if self._shared is not None:
                    self._shared.give_back(name)
                self._free_gpus += share.gpu_ids


def visible_gpus(share: Share, total: Resources, address: str | None) -> dict[str, str]:
    """Return the variable that shows a child its GPUs; on a cluster, which has an address, Ray sets it."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(share.gpu_ids)} if address is None and total.gpus else {}


def num_threads(share: Share, config: Config, total: Resources, num_side_by_side: int) -> int:
    """Return the threads of each worker: its stage's part of the cores, or more where its command asks for more."""
    asked = config.cluster.cpus_per_worker if isinstance(config, TrainingRunConfig) else 1
    return max(1, int(asked), int(total.cpus // max(1, num_side_by_side) // share.num_workers))
