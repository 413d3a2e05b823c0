"""How long a step takes on a device: its operations, the bytes it moves, and what of its communication is not hidden.

The efficiencies are fitted to published runs of other trainers (`tests/benchmarks/bench_plan_throughput.py`): those of
the products to each generation of devices, in `conf/device/`, the costs below to all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import mul

from modules.config import ActivationCheckpointing
from orchestrator.configuration.planning import DeviceConfig
from orchestrator.planning.activations import Pass, activation_bytes
from orchestrator.planning.flops import Flops, head_flops, pass_flops
from orchestrator.planning.memory import Setting, Strategy
from orchestrator.planning.muon import iteration_flops, matrix_shapes

_LOGIT_BYTES = 10
"""Written and read for each logit: itself, its probability and its gradient."""
ERROR = 0.10
"""Nine in ten of the published runs that were not fitted lie within this of what is computed for them."""


@dataclass(frozen=True)
class Costs:
    """What does not depend on the generation of a device."""

    activation_passes: float = 4.65
    """Times that the bytes kept for the backward pass go through the device's memory."""
    bytes_per_parameter: float = 199.0
    """Moved for each parameter of a worker's optimizer in a step."""
    block_seconds: float = 3.5e-3
    """Of a block of layers in a micro-batch, however small: launches, waits."""
    exposed: float = 0.097
    """Share of the communication that the computation does not hide, where a trainer overlaps them."""


COSTS = Costs()
HIDDEN_LAUNCHES = replace(COSTS, block_seconds=0.0)
"""Of a host that launches while the device computes, as it may with compiled blocks. An H200 trained gpt2_124m with 302
to 345 thousand tokens a second, compiled; by these costs it is 422 thousand, by the others 173."""


@dataclass(frozen=True)
class Work:
    """What one worker does in a step."""

    matmul_flops: float
    head_flops: float
    """Those of them in the output head, of which nothing is computed again."""
    attention_flops: float
    moved_bytes: float
    """By all but the matrix products, once for each pass."""
    num_parameters: float
    """Whose optimizer state it holds."""
    num_blocks: float
    """Blocks of layers, in all micro-batches."""
    link_seconds: float
    """Of its communication."""
    optimizer_flops: float = 0.0
    """Of Muon's iterations, which are no operations of the model and in no utilisation."""
    recomputes: ActivationCheckpointing = "none"
    """What of the forward pass the backward pass computes again."""

    @property
    def flops(self) -> float:
        """Operations as utilisations count them, without those that are computed again."""
        return self.matmul_flops + self.attention_flops


def work(of: Setting, strategy: Strategy, link_seconds: float) -> Work:
    """Return the work of the mean step over all phases."""
    matmul, head, attention, moved = _mean(of, [_phase(of, phase) for phase in of.phases])
    (num_passes,) = _mean(of, [(len(phase),) for phase in of.phases])
    holders = of.num_workers if strategy.startswith("zero") else 1
    times = of.accumulation
    return Work(
        matmul_flops=times * matmul,
        head_flops=times * head,
        attention_flops=times * attention,
        moved_bytes=times * moved,
        num_parameters=of.num_trained / holders,
        num_blocks=times * num_passes * of.model.num_layers,
        link_seconds=link_seconds,
        optimizer_flops=optimizer_flops(of) / holders,
        recomputes=of.activation_checkpointing,
    )


def step_seconds(done: Work, device: DeviceConfig, costs: Costs = COSTS) -> float:
    """Return the seconds of a step whose communication is overlapped with computation; the device has efficiencies."""
    peak, bandwidth = device.half_teraflops, device.memory_gigabytes_per_second
    of_matmul, of_attention = device.matmul_efficiency, device.attention_efficiency
    assert peak is not None
    assert bandwidth is not None
    assert of_matmul is not None
    assert of_attention is not None
    of_blocks = (done.matmul_flops - done.head_flops) / of_matmul + done.attention_flops / of_attention
    again = of_blocks / 3 if done.recomputes == "blocks" else 0.0
    moved_again = 1.0 if done.recomputes == "none" else 4 / 3
    products = done.matmul_flops / of_matmul + done.attention_flops / of_attention
    orthogonalizing = done.optimizer_flops / of_matmul
    moved = moved_again * costs.activation_passes * done.moved_bytes + costs.bytes_per_parameter * done.num_parameters
    return (
        (products + again + orthogonalizing) / (1e12 * peak)
        + moved / (1e9 * bandwidth)
        + costs.block_seconds * done.num_blocks
        + costs.exposed * done.link_seconds
    )


def optimizer_flops(of: Setting) -> int:
    """Return the operations of a step's matrix products in the optimizer, of all workers that share it."""
    return iteration_flops(matrix_shapes(of.weights)) if of.optimizer == "muon" else 0


def is_known(device: DeviceConfig, of: Setting) -> bool:
    """Return whether published runs say how fast this device computes in this precision."""
    figures = (device.half_teraflops, device.memory_gigabytes_per_second)
    efficiencies = (device.matmul_efficiency, device.attention_efficiency)
    return None not in (*figures, *efficiencies) and of.widths.compute == 2


def flops_per_token(of: Setting) -> Flops:
    """Return the mean operations a token, over all steps."""
    per_phase = [_sum_of(of, phase) * (1 / phase[0].num_tokens) for phase in of.phases]
    return Flops(*_mean(of, [(flops.forward, flops.backward) for flops in per_phase]))


def _mean(of: Setting, per_phase: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each figure over the steps, given those of each phase."""
    return [sum(map(mul, of.phase_shares, figures)) for figures in zip(*per_phase, strict=True)]


def _phase(of: Setting, phase: list[Pass]) -> tuple[float, float, float, float]:
    total = _sum_of(of, phase).total
    inner = of.model.num_heads * of.model.width_per_head
    attention = sum(12.0 * of.model.num_layers * each.num_tokens * each.length * inner for each in phase)
    moved = sum(
        activation_bytes(of.model, each, of.precision, "cuda") + _LOGIT_BYTES * each.head_tokens * of.vocab_size
        for each in phase
    )
    head = sum(head_flops(of.model, of.vocab_size, each).total for each in phase)
    return total - attention, head, attention, moved


def _sum_of(of: Setting, phase: list[Pass]) -> Flops:
    return sum((pass_flops(of.model, of.vocab_size, each) for each in phase), Flops())
