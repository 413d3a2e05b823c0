"""The texts that a model is trained on, one or several in proportions, as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modules.config import ObjectiveConfig, SourceConfig
from modules.data.group_order import Order
from modules.data.joined_stream import JoinedStream
from modules.data.mixture import Mixture, Part
from modules.data.quota import MOST_SAMPLES, are_exact, whole_weights
from modules.data.shards import TokenData
from modules.data.tokenizer import Tokenizer
from modules.phases import phase_ends


@dataclass(frozen=True)
class Schedule:
    """Which weights the sources have in which samples."""

    sources: Sequence[SourceConfig]
    objective: ObjectiveConfig
    num_steps: int
    global_batch_size: int

    @property
    def num_samples(self) -> int:
        """Samples of the whole training."""
        return self.num_steps * self.global_batch_size

    def weights(self) -> list[list[float]]:
        """Return the weights of the sources in each phase."""
        own = {source.name: source.weight for source in self.sources}
        of_phases = [own if phase.data_weights is None else phase.data_weights for phase in self.objective.phases]
        return [[weights.get(source.name, 0.0) for source in self.sources] for weights in of_phases]

    def parts(self) -> list[Part]:
        """Return the stretches of samples with the same weights; neighbouring phases of the same weights are one."""
        ends, parts = phase_ends(self.objective, self.num_steps), list[Part]()
        for begin, end, weights in zip([0, *ends], ends, self.weights(), strict=False):
            whole = tuple(whole_weights(weights))
            if end > begin and not (parts and parts[-1].weights == whole):
                parts.append(Part(begin * self.global_batch_size, whole))
        return parts

    def notes(self) -> list[str]:
        """Return a line for the user on each phase whose weights are rounded."""
        return [
            f"note: the weights of phase {number} need a period of more than {MOST_SAMPLES} samples; each share is "
            f"rounded to a multiple of 1/{MOST_SAMPLES}"
            for number, weights in enumerate(self.weights())
            if not are_exact(weights, whole_weights(weights))
        ]

    def mixture(self, orders: Sequence[Order]) -> Mixture:
        """Return which sample is which window of which source, from the order of the windows of each."""
        return Mixture(orders, self.parts())


@dataclass(frozen=True)
class MixedData:
    """Prepared texts with one tokenizer."""

    texts: Mapping[str, TokenData]
    """By the name of the source; a single text that is no source has the name ""."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all."""
        return next(iter(self.texts.values())).tokenizer

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources; empty for a single text that is no source."""
        return tuple(name for name in self.texts if name)

    @property
    def train(self) -> JoinedStream:
        """The text that is trained on."""
        return JoinedStream([text.train for text in self.texts.values()])

    def orders(self, sequence_length: int, seed: int) -> list[Order]:
        """Return the order of the windows of each source."""
        return [text.train.order(sequence_length, seed) for text in self.texts.values()]
