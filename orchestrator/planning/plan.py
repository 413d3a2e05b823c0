"""A plan: everything that can be said of a training before it starts, with None for what is not known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from orchestrator.configuration.commands import PlanFinetuneConfig, PlanPretrainConfig
from orchestrator.configuration.planning import DeviceConfig
from orchestrator.planning.advice import USABLE, candidates, fits, largest_micro_batch, simplest
from orchestrator.planning.memory import STRATEGIES, Memory, Setting, Strategy, memory
from orchestrator.planning.saves import Saves, saves
from orchestrator.planning.setting import setting_of
from orchestrator.planning.sources import SourcePlan, source_plans
from orchestrator.planning.speed import COSTS, ERROR, HIDDEN_LAUNCHES, is_known, step_seconds, work
from orchestrator.planning.traffic import Traffic, seconds, traffic

PlanConfig = PlanPretrainConfig | PlanFinetuneConfig


@dataclass(frozen=True)
class StrategyPlan:
    """One strategy."""

    name: Strategy
    memory: Memory
    fits: bool | None
    """None if the device's memory is not known."""
    largest_micro_batch: int | None
    traffic: Traffic
    traffic_seconds: float | None


@dataclass(frozen=True)
class Range:
    """A figure between two bounds."""

    low: float
    high: float


@dataclass(frozen=True)
class Plan:
    """What a training will need and cost.

    Args:
        config: The training's configuration with device and links.
        vocab_size: Tokens of the tokenizer, or its bound.
        notes: What was assumed so far.
    """

    config: PlanConfig
    vocab_size: int
    notes: Sequence[str] = ()

    @property
    def device(self) -> DeviceConfig | None:
        return self.config.device

    @cached_property
    def setting(self) -> Setting:
        on_cpu = self.device is not None and not self.device.is_gpu
        return setting_of(self.config, self.vocab_size, "cpu" if on_cpu else "cuda")

    @property
    def device_bytes(self) -> float | None:
        """What tensors can take of the device's memory; None if it is not known."""
        known = self.device is not None and self.device.memory_gigabytes is not None
        return USABLE * 1e9 * self.device.memory_gigabytes if known else None  # type: ignore[union-attr,operator]

    @cached_property
    def strategies(self) -> list[StrategyPlan]:
        """Those that the number of workers and the precision allow."""
        possible = candidates(self.setting.num_workers, self.setting.precision)
        return [self._strategy(name) for name in STRATEGIES if name in possible or name == self.config.strategy.name]

    @cached_property
    def advice(self) -> Strategy | None:
        """The simplest strategy that fits; None if none does, or if the device's memory is not known."""
        return simplest(self.setting, self.device_bytes) if self.device_bytes else None

    @property
    def chosen(self) -> Strategy | None:
        """The configured strategy, or with `auto` the advice."""
        name = self.config.strategy.name
        return self.advice if name == "auto" else name

    @property
    def chosen_fits(self) -> bool | None:
        """Whether the chosen strategy fits into the device; None if its memory is not known."""
        return next((found.fits for found in self.strategies if found.name == self.chosen), None)

    @property
    def tokens_per_step(self) -> int:
        return self.config.training.global_batch_size * self.setting.length

    @property
    def num_steps(self) -> int | None:
        """None if it follows from data that is not read here."""
        if isinstance(self.config, PlanFinetuneConfig) and self.config.finetune.num_epochs is not None:
            return None
        return self.config.training.num_steps

    @property
    def sources(self) -> list[SourcePlan]:
        """The sources of a mixture."""
        return [] if isinstance(self.config, PlanFinetuneConfig) else source_plans(self.config, self.tokens_per_step)

    @property
    def has_speed(self) -> bool:
        """Whether published runs, or the share of the peak that is given, say how fast the device computes."""
        if self.device is None or self._peak() is None:
            return False
        if self.config.plan.utilization is not None:
            return True
        return is_known(self.device, self.setting) and not self.offloads

    @property
    def offloads(self) -> bool:
        """Whether the host computes the optimizer's step, of which no published run says how long it takes."""
        return self.chosen is not None and self.chosen.endswith("offload")

    @cached_property
    def step_seconds(self) -> Range | None:
        """The time of a step; None if nothing says how fast the device is, or if the strategy does not fit."""
        if self.device is None or self.chosen is None or self.chosen_fits is False:
            return None
        on_links = next(found.traffic_seconds for found in self.strategies if found.name == self.chosen)
        done, peak = work(self.setting, self.chosen, on_links or 0.0), self._peak()
        if peak and self.config.plan.utilization:
            exact = done.flops / (peak * self.config.plan.utilization)
            return Range(exact, exact)
        if not self.has_speed or on_links is None:
            return None
        fewest = HIDDEN_LAUNCHES if self.config.training.compile else COSTS
        hidden, launched = (step_seconds(done, self.device, costs) for costs in (fewest, COSTS))
        return Range(hidden * (1 - ERROR), (launched + on_links) * (1 + ERROR))

    @property
    def utilization(self) -> Range | None:
        """The share of the peak that model operations reach."""
        peak = self._peak()
        if self.step_seconds is None or self.chosen is None or peak is None:
            return None
        flops = work(self.setting, self.chosen, 0.0).flops
        return Range(flops / (peak * self.step_seconds.high), flops / (peak * self.step_seconds.low))

    @property
    def mtbf_seconds(self) -> float | None:
        """The mean time between faults of the run; the figure of one device is that of GPUs."""
        given = self.config.checkpoint.mtbf_seconds
        if given is not None or self.device is None or not self.device.is_gpu:
            return given
        return 3600 * self.config.plan.device_mtbf_hours / self.setting.num_workers

    @property
    def saves(self) -> Saves | None:
        if self.chosen is None:
            return None
        to_host = self.device.host_gigabytes_per_second if self.device else None
        store = self.config.plan.store_gigabytes_per_second
        return saves(self.setting, self.chosen, self.mtbf_seconds, to_host, store)

    def _peak(self) -> float | None:
        if self.device is None:
            return None
        device, tf32 = self.device, self.config.training.tf32
        exact = device.tf32_teraflops if tf32 else device.float32_teraflops
        teraflops = device.half_teraflops if self.setting.widths.compute == 2 else exact
        return 1e12 * teraflops if teraflops else None

    def _strategy(self, name: Strategy) -> StrategyPlan:
        found, moved = memory(self.setting, name), traffic(self.setting, name)
        usable = self.device_bytes
        return StrategyPlan(
            name=name,
            memory=found,
            fits=None if usable is None else fits(self.setting, name, usable),
            largest_micro_batch=None if usable is None else largest_micro_batch(self.setting, name, usable),
            traffic=moved,
            traffic_seconds=seconds(moved, self.setting.num_workers, self.device, self.config.link),
        )
