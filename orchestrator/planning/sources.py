"""How much of each source of a mixture a training takes, and how large it must be for that."""

from dataclasses import dataclass

from modules.phases import phase_ends
from orchestrator.configuration.commands import PlanPretrainConfig


@dataclass(frozen=True)
class SourcePlan:
    """One source."""

    name: str
    share: float
    """Of all tokens of the training."""
    num_tokens: float
    """Tokens that the training takes, repeated ones included."""
    fewest_tokens: float | None
    """Tokens that its training split needs, so that none is taken more than `max_epochs` times; None without it."""


def source_plans(config: PlanPretrainConfig, tokens_per_step: int) -> list[SourcePlan]:
    """Return what becomes of each source, in their given order; empty for a single text."""
    ends = phase_ends(config.objective, config.training.num_steps)
    lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    taken = {source.name: 0.0 for source in config.data.sources}
    own = {source.name: source.weight for source in config.data.sources}
    for phase, length in zip(config.objective.phases, lengths, strict=True):
        weights = own if phase.data_weights is None else phase.data_weights
        for name, weight in weights.items():
            taken[name] += length * tokens_per_step * weight / sum(weights.values())
    total = config.training.num_steps * tokens_per_step
    return [
        SourcePlan(
            source.name,
            taken[source.name] / total,
            taken[source.name],
            None if source.max_epochs is None else taken[source.name] / source.max_epochs,
        )
        for source in config.data.sources
    ]
