"""The simplest strategy that fits, which `strategy=auto` takes, and what would fit where none does."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from modules.config import Precision, divisors
from orchestrator.errors import ConfigError
from orchestrator.planning.memory import Setting, Strategy, memory, needed

USABLE = 0.92
"""Share of a device's memory that tensors can take: the rest is CUDA's, NCCL's and what fragments of it are lost."""
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


def largest_micro_batch(of: Setting, strategy: Strategy, device_bytes: float) -> int:
    """Return the most sequences at once that fit and that share out what a worker computes in a step; 0 if none."""
    sizes = reversed(divisors(of.sequences))
    return next((size for size in sizes if fits(of.with_micro_batch(size), strategy, device_bytes)), 0)


def chosen(of: Setting, device_bytes: float, host_bytes: float | None = None) -> Strategy:
    """Return the simplest strategy that fits.

    Raises:
        ConfigError: none does.
    """
    found = simplest(of, device_bytes, host_bytes)
    if found is None:
        raise ConfigError(f"strategy=auto: {nothing_fits(of, device_bytes, host_bytes)}")
    return found


def nothing_fits(of: Setting, device_bytes: float, host_bytes: float | None = None) -> str:
    """Return what is lacking where no strategy fits, and what would fit."""
    least = min(needed(memory(of, name), of) for name in candidates(of.num_workers, of.precision))
    of_host = "" if host_bytes is None else f" and {host_bytes / 1e9:.3g} GB of the host"
    changes = [*_changes(of, device_bytes, host_bytes), *_blocks_again(of, device_bytes, host_bytes)]
    would = f"what would fit: {'; or '.join(changes)}" if changes else _too_long(of)
    lacking = f"a worker needs {least / 1e9:.3g} GB at least and has {device_bytes / 1e9:.3g} GB{of_host}"
    return f"no strategy fits: {lacking}; {would}"


def _changes(of: Setting, device_bytes: float, host_bytes: float | None) -> Iterator[str]:
    """Yield the largest micro-batch, and the fewest workers, with which a strategy fits."""
    for size in reversed([size for size in divisors(of.sequences) if size < of.micro_batch]):
        if found := simplest(of.with_micro_batch(size), device_bytes, host_bytes):
            yield f"training.micro_batch_size={size} ({found})"
            break
    if of.device == "cpu":  # more workers of this machine would share the same memory
        return
    total = of.sequences * of.num_workers
    for number in (number for number in divisors(total) if number > of.num_workers):
        if found := simplest(of.among(number), device_bytes):
            yield f"cluster.num_workers={number} with training.micro_batch_size=1 ({found})"
            break


def _blocks_again(of: Setting, device_bytes: float, host_bytes: float | None) -> Iterator[str]:
    """Yield that blocks are computed again, if a strategy fits with that."""
    again = replace(of, activation_checkpointing="blocks")
    if of.activation_checkpointing != "blocks" and (found := simplest(again, device_bytes, host_bytes)):
        yield f"training.activation_checkpointing=blocks ({found})"


def _too_long(of: Setting) -> str:
    """Return what is left to do where neither a smaller micro-batch nor more workers are enough."""
    shares_host = of.device == "cpu"
    most = of.with_micro_batch(1) if shares_host else of.among(of.sequences * of.num_workers)
    least = min(needed(memory(most, name), most) for name in candidates(most.num_workers, most.precision))
    workers = (
        "each worker" if shares_host else f"each of {most.num_workers:,} workers, the most that share out the batch"
    )
    more = "" if shares_host else ", or raise training.global_batch_size and cluster.num_workers"
    return (
        f"with one sequence at once on {workers}, it would be {least / 1e9:.3g} GB; lower training.sequence_length, or "
        f"take a smaller model or more memory{more}"
    )
