"""What saves take: bytes, time, the best interval between them, and the goodput that they leave."""

from dataclasses import dataclass

from orchestrator.planning.memory import Setting, Strategy
from orchestrator.planning.save_interval import goodput_bound, young_seconds

_BYTES_PER_ELEMENT = 4
"""Of weights and moments, whatever the precision of the training."""


@dataclass(frozen=True)
class Saves:
    """The saves of a run; None where something is not known."""

    num_bytes: int
    bytes_per_worker: float
    mtbf_seconds: float | None
    cost_seconds: float | None
    """Time that training waits for one save, at least."""
    write_seconds: float | None
    """Until it is in the store."""

    @property
    def interval_seconds(self) -> float | None:
        """The time between saves that loses least; no save begins before the last one is in the store."""
        if self.cost_seconds is None or self.mtbf_seconds is None:
            return None
        return max(young_seconds(self.cost_seconds, self.mtbf_seconds), self.write_seconds or 0.0)

    def goodput(self, recovery_seconds: float) -> float | None:
        """Return the largest share of the time that kept steps can take."""
        if self.cost_seconds is None or self.mtbf_seconds is None:
            return None
        return max(0.0, goodput_bound(self.cost_seconds, self.mtbf_seconds, recovery_seconds))


def checkpoint_bytes(of: Setting) -> int:
    """Return the bytes of the tensors in a checkpoint; headers and the manifest add some thousandths."""
    return _BYTES_PER_ELEMENT * (of.num_trained + of.num_moments)


def saves(
    of: Setting,
    strategy: Strategy,
    mtbf_seconds: float | None,
    host_gigabytes_per_second: float | None,
    store_gigabytes_per_second: float | None,
) -> Saves:
    """Return what the saves of a run take.

    Args:
        of: The setting; without `keeps_snapshot` training waits for the store.
        strategy: All but `single` share a save among the workers.
        mtbf_seconds: Mean time between faults of the run; None is not known.
        host_gigabytes_per_second: From a device to the host's memory, at its peak; None is not known.
        store_gigabytes_per_second: Of all workers together; None is not known.
    """
    num_bytes = checkpoint_bytes(of)
    per_worker = num_bytes / (1 if strategy == "single" else of.num_workers)
    write = num_bytes / (1e9 * store_gigabytes_per_second) if store_gigabytes_per_second else None
    copy = per_worker / (1e9 * host_gigabytes_per_second) if host_gigabytes_per_second else None
    return Saves(num_bytes, per_worker, mtbf_seconds, copy if of.keeps_snapshot else write, write)
