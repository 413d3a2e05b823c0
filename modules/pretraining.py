"""The pretraining objective: causal and masked language modelling, weighted by phase."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modules.config import ObjectiveConfig, SourceConfig, TrainingConfig
from modules.data.batches import Batch, Batches, BatchSettings, Share, ValidationBatches
from modules.data.mixed_data import MixedData, Schedule
from modules.data.mixture import Mixture
from modules.data.shards import TokenData
from modules.data.tokenizer import Tokenizer
from modules.losses import LossSum, causal_hidden, causal_loss, masked_hidden, masked_loss
from modules.mixed_validation import MixedValidationBatches, mixed_metrics, spread_sums
from modules.model import GPT
from modules.phases import objective_weights, phase_ends
from modules.samples import Sample, window_samples
from modules.validation import validation_metrics, validation_sums

_LOSSES = {"clm": causal_loss, "mlm": masked_loss}


class Pretraining:
    """Causal and masked language modelling on windows of token streams; implements `Objective`.

    Args:
        data: A text, or the texts of a mixture.
        sources: What they are in the mixture, in the same order; empty for a single text.
    """

    def __init__(
        self,
        data: TokenData | MixedData,
        objective: ObjectiveConfig,
        training: TrainingConfig,
        seed: int,
        sources: Sequence[SourceConfig] = (),
    ) -> None:
        self._data = data if isinstance(data, MixedData) else MixedData({"": data})
        self._objective, self._training, self._sources = objective, training, sources
        self._settings = BatchSettings(
            sequence_length=training.sequence_length,
            seed=seed,
            objective=objective,
            with_masked=any(phase.weights.get("mlm") for phase in objective.phases),
            with_documents=training.attention_scope == "document",
            restarts_positions=training.position_scope == "document",
        )
        self._milestones = set(phase_ends(objective, training.num_steps))
        size, length = training.global_batch_size, training.sequence_length
        self._num_targets = {"clm": size * length, "mlm": size * self._settings.num_masked}
        self._mixture = self._laid_out(seed)

    def _laid_out(self, seed: int) -> Mixture:
        training = self._training
        if not self._sources:
            return Mixture.of_one(self._data.train.order(training.sequence_length, seed))
        schedule = Schedule(self._sources, self._objective, training.num_steps, training.global_batch_size)
        return schedule.mixture(self._data.orders(training.sequence_length, seed))

    @property
    def tokenizer(self) -> Tokenizer:
        return self._data.tokenizer

    @property
    def global_batch_size(self) -> int:
        return self._training.global_batch_size

    @property
    def sequence_length(self) -> int:
        return self._training.sequence_length

    def batches(self, share: Share, first_step: int) -> Iterator[Batch]:
        return self._batches(share).from_step(first_step)

    def _batches(self, share: Share) -> Batches:
        return Batches(self._data.train, self.tokenizer, self._settings, share, self._mixture)

    def samples(self, numbers: np.ndarray) -> list[Sample]:
        """Return what training samples hold.

        Args:
            numbers: int64 [n].
        """
        batches = self._batches(Share(self.global_batch_size, self.global_batch_size))
        return window_samples(self._data, self._mixture, batches, numbers)

    def part_losses(self, name: str, model: GPT, sample: Sample) -> list[LossSum]:
        """Return `loss` of a sample's batch, by the parts of the sample, which hold the tokens that are predicted."""
        if name == "clm":
            hidden, targets = causal_hidden(model, sample.batch)[0], sample.batch["targets"][0]
            places = torch.arange(1, len(targets) + 1)  # a target is the token after its position
        else:
            hidden, targets = masked_hidden(model, sample.batch), sample.batch["mlm_targets"][0]
            places = sample.batch["mlm_positions"][0].cpu()
        chosen = [((part.start <= places) & (places < part.stop)).nonzero()[:, 0] for part in sample.parts]
        return [LossSum(model.head(hidden[one], targets[one]), len(one)) for one in chosen]

    def num_targets(self, data_step: int) -> Mapping[str, float]:
        return self._num_targets

    def num_tokens(self, data_step: int) -> int:
        return self.global_batch_size * self.sequence_length

    def source_tokens(self, data_step: int) -> Mapping[str, int]:
        if not self._sources:
            return {}
        size = self.global_batch_size
        counts = self._mixture.counts((data_step + 1) * size) - self._mixture.counts(data_step * size)
        return dict(zip(self._data.names, (counts * self.sequence_length).tolist(), strict=True))

    def weights(self, step: int) -> Mapping[str, float]:
        return objective_weights(self._objective, step, self._training.num_steps)

    def loss(self, name: str, model: GPT, batch: Batch) -> LossSum:
        return _LOSSES[name](model, batch)

    def is_milestone(self, step: int) -> bool:
        return step in self._milestones

    def validation_batches(self, share: Share, num_batches: int) -> Iterable[Batch] | None:
        of_sources = {
            number: ValidationBatches(text.val, self.tokenizer, self._settings, share, num_batches)
            for number, text in enumerate(self._data.texts.values())
            if len(text.val)  # 0 with data.val_fraction=0
        }
        return MixedValidationBatches(of_sources) if of_sources else None

    def validation_sums(self, model: GPT, batch: Batch) -> Tensor:
        return spread_sums(validation_sums(model, batch), batch["source"], len(self._data.texts))

    def validation_metrics(self, sums: Tensor) -> dict[str, float]:
        if not self._sources:
            return validation_metrics(sums)
        return mixed_metrics(sums, self._data.names, [source.weight for source in self._sources])

    def prompts(self, number: int) -> Sequence[Sequence[int]]:
        begin_id = self.tokenizer.begin_id
        return [[self.tokenizer.end_of_text_id if begin_id is None else begin_id]]

    @property
    def sample_end_ids(self) -> tuple[int, ...]:
        return ()
