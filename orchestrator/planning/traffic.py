"""What workers send each other in a step, collective by collective, and how long their links take for it."""

from dataclasses import dataclass
from typing import Literal

from orchestrator.configuration.planning import DeviceConfig, LinkConfig
from orchestrator.planning.memory import Setting, Strategy
from orchestrator.planning.muon import product_bytes
from orchestrator.planning.weights import Weight, optimizer_groups

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]
_FLOAT32 = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes of the tensors in a step's collectives, by kind; flags and norms of a few numbers are left out."""

    all_reduce: int = 0
    all_gather: int = 0
    reduce_scatter: int = 0
    all_to_all: int = 0
    """Of Muon's matrices under ZeRO-3, which brings each together on one worker and takes it apart again."""

    @property
    def total(self) -> int:
        return self.all_reduce + self.all_gather + self.reduce_scatter + self.all_to_all

    def sent(self, num_workers: int) -> float:
        """Return the bytes that each worker sends, in rings, which send the least."""
        share = (num_workers - 1) / num_workers
        return share * (2 * self.all_reduce + self.all_gather + self.reduce_scatter + self.all_to_all / num_workers)


def traffic(of: Setting, strategy: Strategy) -> Traffic:
    """Return what a step moves."""
    if strategy == "single" or of.num_workers == 1:
        return Traffic()
    width, trained = of.widths.weight, of.num_trained
    if strategy == "ddp":
        return Traffic(all_reduce=_FLOAT32 * trained)
    if strategy.startswith("zero3"):
        return _zero3(of)
    # stage 2 reduces each micro-batch's gradients, stage 1 their sum
    times = of.accumulation if strategy.startswith("zero2") else 1
    return Traffic(all_reduce=times * width * trained, all_gather=width * _padded_groups(of))


def seconds(moved: Traffic, num_workers: int, device: DeviceConfig | None, link: LinkConfig | None) -> float | None:
    """Return how long the slowest link takes for a step's bytes; None if a link is not known."""
    if num_workers == 1 or not moved.total:
        return 0.0
    if device is None:
        return None
    links = [device.link] if num_workers <= device.per_node else [link, device.link if device.per_node > 1 else link]
    speeds = [each.gigabytes_per_second for each in links if each is not None]
    return moved.sent(num_workers) / (1e9 * min(speeds)) if len(speeds) == len(links) else None


def _padded_groups(of: Setting) -> int:
    """Return the elements of all weights as stages 1 and 2 gather them: each of the optimizer's groups padded."""
    unit = 2 * of.num_workers
    return sum(
        -(-sum(weight.numel for weight in group) // unit) * unit for group in optimizer_groups(of.weights, of.optimizer)
    )


def _zero3(of: Setting) -> Traffic:
    """Return what stage 3 moves: weights for each pass, and gradients to their owners in each micro-batch.

    Small parameters stay with every worker, and are gathered once, after the step. Of the others, those of the last
    blocks are still there when the backward pass begins, and are not gathered again.
    """
    width, kept_below = of.widths.weight, of.elements("stage3_param_persistence_threshold")
    small = [weight for weight in of.weights if weight.numel <= kept_below]
    large = sum(_padded(weight, of) for weight in of.weights if weight.numel > kept_below)
    again = max(0, large - of.elements("stage3_max_reuse_distance") // 2)
    gathered = of.accumulation * (large + again) + sum(_padded(weight, of) for weight in small)
    reduced = sum(_padded(weight, of) for weight in of.weights if weight.is_trained)
    orthogonalized = 2 * of.num_trained - of.num_moments
    return Traffic(
        all_gather=width * gathered,
        reduce_scatter=width * of.accumulation * reduced,
        all_to_all=2 * product_bytes(of.device) * orthogonalized,
    )


def _padded(weight: Weight, of: Setting) -> int:
    return -(-weight.numel // of.num_workers) * of.num_workers
