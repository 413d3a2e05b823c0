"""The memory of a worker at the fullest moment of a step, under each strategy, by what it is for.

The layout is that of the strategies themselves: DDP's gradients are views of its buckets; DeepSpeed 0.19.8 keeps, in
stages 1 and 2, all weights and this worker's float32 copy of its part, also with float32 weights, and in stage 3 no
second copy of those. Its gradients pass through a bucket of 5e8 elements, on a GPU through two of 2e8, allocated as a
whole.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Literal, get_args

from modules.config import ObjectiveConfig
from modules.config_fields import ActivationCheckpointing, HeadLoss, Precision
from modules.model_config import ModelConfig
from modules.phases import phase_ends
from orchestrator.configuration.groups import StrategyName
from orchestrator.configuration.schema import shown
from orchestrator.errors import ConfigError
from orchestrator.planning.activations import (
    Pass,
    Widths,
    again_bytes,
    head_buffer_bytes,
    head_bytes,
    head_weight_bytes,
    kept_bytes,
    passes,
)
from orchestrator.planning.muon import matrix_shapes, sharded_step_bytes, step_bytes
from orchestrator.planning.weights import OptimizerName, Weight, num_elements, num_moments, weights

Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
STRATEGIES: tuple[Strategy, ...] = tuple(name for name in get_args(StrategyName) if name != "auto")
_FLOAT32 = 4
_DEEPSPEED_DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_max_reuse_distance": 1e9,
    "stage3_max_live_parameters": 1e9,
    "stage3_param_persistence_threshold": 1e5,
}
"""Elements, as deepspeed 0.19.8 sets them (`runtime/zero/config.py`)."""
ZERO_ON_GPU: Mapping[str, Any] = {"overlap_comm": True, "reduce_bucket_size": 200_000_000}
"""What ours are on a GPU: one bucket of gradients is reduced while another is filled, so there are two, but smaller."""


_MOST_ELEMENTS = 1e15
_RECKONED = {*_DEEPSPEED_DEFAULTS, "overlap_comm"}


def not_reckoned(deepspeed: Mapping[str, Any]) -> list[str]:
    """Return those of DeepSpeed's own settings that a plan knows nothing of, by their paths."""
    zero = deepspeed.get("zero_optimization")
    inner = [f"zero_optimization.{name}" for name in zero if name not in _RECKONED] if isinstance(zero, dict) else []
    return [name for name in deepspeed if name != "zero_optimization" or not isinstance(zero, dict)] + inner


@dataclass(frozen=True)
class _Parameters:
    weights: list[Weight]
    num_trained: int
    num_frozen: int
    largest: int


@lru_cache(maxsize=4)
def _parameters(model: ModelConfig, vocab_size: int) -> _Parameters:
    """Return the parameters of a shape, which many settings that differ in workers and batches have in common."""
    found = weights(model, vocab_size)
    trained = num_elements(weight for weight in found if weight.is_trained)
    return _Parameters(found, trained, num_elements(found) - trained, max(weight.numel for weight in found))


@dataclass(frozen=True)
class Setting:
    """What the memory of a worker depends on, beside the strategy."""

    model: ModelConfig
    vocab_size: int
    precision: Precision
    length: int
    micro_batch: int
    num_workers: int = 1
    accumulation: int = 1
    objective: ObjectiveConfig | None = None
    num_steps: int = 1000
    """Which the lengths of phases are shares of."""
    within_documents: bool = False
    restarts_positions: bool = False
    activation_checkpointing: ActivationCheckpointing = "none"
    head_loss: HeadLoss = "eager"
    compiles_blocks: bool = False
    device: Literal["cpu", "cuda"] = "cuda"
    keeps_snapshot: bool = True
    """Whether a save is copied into memory before it is written (`checkpoint.mode=async`)."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """DeepSpeed's own settings."""
    optimizer: OptimizerName = "adamw"

    @property
    def _parameters(self) -> _Parameters:
        return _parameters(self.model, self.vocab_size)  # type: ignore[arg-type]  # frozen, so pydantic gives it a hash

    @property
    def weights(self) -> list[Weight]:
        return self._parameters.weights

    @property
    def num_trained(self) -> int:
        return self._parameters.num_trained

    @cached_property
    def num_moments(self) -> int:
        """Elements of the optimizer's moments."""
        return num_moments(self.weights, self.optimizer)

    @property
    def num_frozen(self) -> int:
        return self._parameters.num_frozen

    @property
    def largest(self) -> int:
        """Elements of the largest parameter."""
        return self._parameters.largest

    @property
    def gathered_together(self) -> int:
        """Elements of the largest module whose weights ZeRO-3 gathers together; of compiled blocks, whole ones."""
        block = num_elements(weight for weight in self.weights if weight.name.startswith("blocks.0."))
        return max(self.largest, block) if self.compiles_blocks else self.largest

    @cached_property
    def phases(self) -> list[list[Pass]]:
        return passes(self.objective, self.micro_batch, self.length, self.within_documents, self.restarts_positions)

    @property
    def widths(self) -> Widths:
        return Widths.of(self.precision)

    def elements(self, name: str) -> int:
        """Return a setting of DeepSpeed's ZeRO that is a number of elements.

        Raises:
            ConfigError: it is something else.
        """
        given = self._zero.get(name, _DEEPSPEED_DEFAULTS[name])
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= _MOST_ELEMENTS:
            path = f"strategy.deepspeed.zero_optimization.{name}"
            raise ConfigError(f"{path}={shown(given)}: must be a number of elements from 0 to {_MOST_ELEMENTS:g}")
        return int(given)

    @property
    def overlaps_communication(self) -> bool:
        """Whether DeepSpeed reduces one bucket of gradients while another is filled."""
        return bool(self._zero.get("overlap_comm"))

    @property
    def _zero(self) -> Mapping[str, Any]:
        zero = self.deepspeed.get("zero_optimization")
        given = zero if isinstance(zero, dict) else {}
        return {**ZERO_ON_GPU, **given} if self.device == "cuda" else given

    @property
    def sequences(self) -> int:
        """Sequences that a worker computes in a step."""
        return self.micro_batch * self.accumulation

    @property
    def phase_shares(self) -> list[float]:
        """The share of the steps that each phase has."""
        if self.objective is None:
            return [1.0]
        ends = phase_ends(self.objective, self.num_steps)
        return [(end - begin) / self.num_steps for begin, end in pairwise([0, *ends])]

    def with_micro_batch(self, micro_batch: int) -> "Setting":
        """Return the same step in micro-batches of another size, which divides a worker's sequences."""
        return replace(self, micro_batch=micro_batch, accumulation=self.sequences // micro_batch)

    def among(self, num_workers: int) -> "Setting":
        """Return the same step by another number of workers, which divides the global batch, sequence by sequence."""
        sequences = self.sequences * self.num_workers // num_workers
        return replace(self, num_workers=num_workers, micro_batch=1, accumulation=sequences)


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at the fullest moment of a step."""

    weights: int = 0
    """Of the device: working weights, and those that ZeRO-3 has gathered."""
    gradients: int = 0
    optimizer: int = 0
    """float32 weights beside the working ones, and the moments."""
    activations: int = 0
    head: int = 0
    """Of the output head and the loss."""
    buffers: int = 0
    """Of communication, and of Muon's iterations."""
    host: int = 0
    """In the host's memory: what is offloaded, and the copy of a save, page-locked where the state is on a GPU."""

    @property
    def on_device(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.head + self.buffers


def memory(of: Setting, strategy: Strategy) -> Memory:
    """Return the memory of the fullest moment: the end of a forward or a backward pass, or the optimizer's step."""
    stage = int(strategy[4]) if strategy.startswith("zero") else 0
    fullest = max(_moments(of, stage, strategy), key=lambda end: end.on_device)
    host = _offloaded(of, stage) + _muon_bytes(of, strategy)[1] if strategy.endswith("offload") else 0
    workers = 1 if strategy == "single" else of.num_workers
    snapshot = _FLOAT32 * (of.num_trained + of.num_moments) // workers if of.keeps_snapshot else 0
    return replace(fullest, host=host + snapshot)


def _moments(of: Setting, stage: int, strategy: Strategy) -> list[Memory]:
    if not stage:
        return _without_zero(of, strategy)
    return _zero3(of, strategy) if stage == 3 else _zero12(of, stage, strategy)


def on_host_alone(found: Memory) -> int:
    """Return the bytes of a worker whose device is the host's processor."""
    return found.on_device + found.host


def needed(found: Memory, of: Setting) -> int:
    """Return what the memory of the device must hold."""
    return found.on_device if of.device == "cuda" else on_host_alone(found)


def activations_with(of: Setting, mode: ActivationCheckpointing) -> int:
    """Return the activations at the fullest moment under another `training.activation_checkpointing`."""
    return _forward(replace(of, activation_checkpointing=mode)).activations


def _forward(of: Setting) -> Memory:
    """Return what the end of the forward pass adds, or the first block computed again, in the fullest phase."""
    model, mode = of.model, of.activation_checkpointing
    common = (of.precision, of.device)

    def of_phase(phase: list[Pass]) -> Iterator[Memory]:
        kept = sum(kept_bytes(model, each, *common, mode) for each in phase)
        head = sum(head_bytes(model, of.vocab_size, each, of.precision) for each in phase)
        head += head_buffer_bytes(model, of.vocab_size, phase[-1], *common, of.head_loss)
        yield Memory(activations=kept, head=head)
        if mode != "none":
            again = max(again_bytes(model, each, *common, mode) for each in phase)
            yield Memory(activations=kept + again, head=len(phase) * head_weight_bytes(model, of.vocab_size))

    return max((moment for phase in of.phases for moment in of_phase(phase)), key=lambda moment: moment.on_device)


def _without_zero(of: Setting, strategy: Strategy) -> list[Memory]:
    trained = _FLOAT32 * of.num_trained
    # DDP's buckets hold the gradients of the micro-batch that is averaged alone; those of the others lie beside them
    gradients = trained * (2 if strategy == "ddp" and of.accumulation > 1 else 1)
    whole = _FLOAT32 * (of.num_trained + of.num_frozen)
    forward = _forward(of)
    # the gradients of the last step are freed only after the forward pass of the next one
    step = Memory(whole, gradients, optimizer=_FLOAT32 * of.num_moments)
    before = replace(step, activations=forward.activations, head=forward.head)
    return [before, replace(step, buffers=_muon_bytes(of, strategy)[0])]


def _muon_bytes(of: Setting, strategy: Strategy) -> tuple[int, int]:
    """Return what the step of Muon takes for a while, of the device and of the host."""
    if of.optimizer != "muon":
        return 0, 0
    shapes = matrix_shapes(of.weights)
    if not strategy.startswith("zero"):
        return step_bytes(shapes, of.device), 0
    return sharded_step_bytes(shapes, of.num_workers, of.device, offloads=strategy.endswith("offload"))


def _zero12(of: Setting, stage: int, strategy: Strategy) -> list[Memory]:
    width, trained, part = of.widths.weight, of.num_trained, of.num_trained // of.num_workers
    offloads = strategy.endswith("offload")
    weights_ = width * (trained + of.num_frozen)
    optimizer = 0 if offloads else _FLOAT32 * (part + of.num_moments // of.num_workers)
    in_bucket = min(trained, of.elements("reduce_bucket_size"))
    bucket = width * (of.elements("reduce_bucket_size") if of.device == "cuda" else in_bucket)
    bucket *= 2 if of.overlaps_communication else 1
    carried = 0
    if of.accumulation > 1 and not offloads:
        carried = width * (trained if stage == 1 else part)
    before = replace(_forward(of), weights=weights_, optimizer=optimizer, gradients=carried)
    # what does not go through the bucket as a whole waits in the parameters; the bucket is copied to be reduced
    waiting = width * (trained - in_bucket if stage == 1 else 0)
    if of.device == "cuda" and stage == 1:
        waiting = width * trained
    kept = 0 if stage == 1 else carried
    temporary = width * of.largest if offloads else 0
    after = Memory(
        weights_, gradients=waiting + kept, optimizer=optimizer, buffers=bucket + width * in_bucket + temporary
    )
    # each worker's gradients once more in float32, for the optimizer
    of_optimizer = 0 if offloads else (width + _FLOAT32) * part
    step = Memory(weights_, gradients=of_optimizer, optimizer=optimizer, buffers=_muon_bytes(of, strategy)[0])
    return [before, after, step]


def _zero3(of: Setting, strategy: Strategy) -> list[Memory]:
    width, trained, part = of.widths.weight, of.num_trained, of.num_trained // of.num_workers
    offloads = strategy.endswith("offload")
    whole = trained + of.num_frozen
    largest = of.gathered_together
    # parameters that are used again soon stay gathered, and in a backward pass those of the last blocks are
    reused = of.elements("stage3_max_reuse_distance") // 2 + of.elements("stage3_prefetch_bucket_size") + largest
    gathered = min(whole, reused, max(of.elements("stage3_max_live_parameters"), largest))
    shard = width * (whole // of.num_workers)
    has_master = width != _FLOAT32
    optimizer = 0 if offloads else _FLOAT32 * (has_master * part + of.num_moments // of.num_workers)
    in_bucket = min(trained, of.elements("reduce_bucket_size"))
    bucket = width * (of.elements("reduce_bucket_size") if of.device == "cuda" else in_bucket)
    gradients = 0 if offloads else width * part
    common = Memory(shard, gradients, optimizer, buffers=bucket)
    before = replace(_forward(of), weights=shard + width * gathered, gradients=gradients, optimizer=optimizer)
    # parameters are copied out of what was gathered ahead, which is kept until the last of them is used
    ahead = width * min(whole, of.elements("stage3_prefetch_bucket_size"))
    return [
        replace(before, buffers=bucket + ahead),
        replace(common, buffers=bucket + width * in_bucket),
        replace(
            common,
            gradients=gradients + (0 if offloads else _FLOAT32 * part),
            buffers=bucket + _muon_bytes(of, strategy)[0],
        ),
    ]


def _offloaded(of: Setting, stage: int) -> int:
    """Return what the host holds: float32 weights, moments and gradients, and what is copied to the device."""
    width, part = of.widths.weight, of.num_trained // of.num_workers
    largest = of.largest
    held = (_FLOAT32 + _FLOAT32 + width) * part + _FLOAT32 * (of.num_moments // of.num_workers)
    if stage == 2:  # a buffer for one gradient, and the sums over micro-batches
        held += width * (largest + (part if of.accumulation > 1 else 0))
    return held
