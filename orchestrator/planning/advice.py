"""The simplest strategy that fits, which `strategy=auto` takes."""

from collections.abc import Sequence

from modules.config import Precision
from orchestrator.errors import ConfigError
from orchestrator.planning.memory import Setting, Strategy, memory, needed

_SIMPLEST_FIRST: tuple[Strategy, ...] = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


def candidates(num_workers: int, precision: Precision) -> Sequence[Strategy]:
    """Return the strategies that so many workers can take with this precision, the simplest first."""
    if num_workers == 1 and not precision.endswith("-true"):
        return ("single", "zero2_offload", "zero3_offload")
    if precision.endswith("-true"):
        return tuple(name for name in _SIMPLEST_FIRST if name.startswith("zero"))
    return _SIMPLEST_FIRST


def fits(of: Setting, strategy: Strategy, device_bytes: float, host_bytes: float | None = None) -> bool:
    """Return whether a worker fits into its device and, where it is known, into its share of the host."""
    found = memory(of, strategy)
    in_host = of.device == "cpu" or host_bytes is None or found.host <= host_bytes
    return needed(found, of) <= device_bytes and in_host


def simplest(of: Setting, device_bytes: float, host_bytes: float | None = None) -> Strategy | None:
    """Return the simplest strategy that fits; None if none does."""
    names = candidates(of.num_workers, of.precision)
    return next((name for name in names if fits(of, name, device_bytes, host_bytes)), None)


def chosen(of: Setting, device_bytes: float, host_bytes: float | None = None) -> Strategy:
    """Return the simplest strategy that fits.

    Raises:
        ConfigError: none does.
    """
    found = simplest(of, device_bytes, host_bytes)
    if found is not None:
        return found
    least = min(needed(memory(of, name), of) for name in candidates(of.num_workers, of.precision))
    raise ConfigError(
        f"strategy=auto: none fits: with training.micro_batch_size={of.micro_batch} a worker needs {least / 1e9:.3g} "
        f"GB at least and has {device_bytes / 1e9:.3g} GB; lower training.micro_batch_size or "
        "training.sequence_length, raise cluster.num_workers, or take training.precision=bf16-true"
    )
