"""The pretraining objective: causal and masked language modelling, weighted by phase."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from modules.config import ObjectiveConfig, TrainingConfig
from modules.data.batches import Batch, Batches, BatchSettings, Share, ValidationBatches
from modules.data.shards import TokenData
from modules.data.tokenizer import Tokenizer
from modules.losses import LossSum, causal_loss, masked_loss
from modules.model import GPT
from modules.phases import objective_weights, phase_ends
from modules.validation import validation_metrics, validation_sums

_LOSSES = {"clm": causal_loss, "mlm": masked_loss}


class Pretraining:
    """Causal and masked language modelling on windows of a token stream; implements `Objective`."""

    def __init__(self, data: TokenData, objective: ObjectiveConfig, training: TrainingConfig, seed: int) -> None:
        self._data, self._objective, self._training = data, objective, training
        self._settings = BatchSettings(
            sequence_length=training.sequence_length,
            seed=seed,
            objective=objective,
            with_masked=any(phase.weights.get("mlm") for phase in objective.phases),
            with_documents=training.attention_scope == "document",
        )
        self._milestones = set(phase_ends(objective, training.num_steps))
        size, length = training.global_batch_size, training.sequence_length
        self._num_targets = {"clm": size * length, "mlm": size * self._settings.num_masked}

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
        return Batches(self._data.train, self.tokenizer, self._settings, share).from_step(first_step)

    def num_targets(self, data_step: int) -> Mapping[str, float]:
        return self._num_targets

    def num_tokens(self, data_step: int) -> int:
        return self.global_batch_size * self.sequence_length

    def weights(self, step: int) -> Mapping[str, float]:
        return objective_weights(self._objective, step, self._training.num_steps)

    def loss(self, name: str, model: GPT, batch: Batch) -> LossSum:
        return _LOSSES[name](model, batch)

    def is_milestone(self, step: int) -> bool:
        return step in self._milestones

    def validation_batches(self, share: Share, num_batches: int) -> Iterable[Batch] | None:
        if len(self._data.val) == 0:  # data.val_fraction=0
            return None
        return ValidationBatches(self._data.val, self.tokenizer, self._settings, share, num_batches)

    def validation_sums(self, model: GPT, batch: Batch) -> Tensor:
        return validation_sums(model, batch)

    def validation_metrics(self, sums: Tensor) -> dict[str, float]:
        return validation_metrics(sums)

    def prompts(self, number: int) -> Sequence[Sequence[int]]:
        begin_id = self.tokenizer.begin_id
        return [[self.tokenizer.end_of_text_id if begin_id is None else begin_id]]

    @property
    def sample_end_ids(self) -> tuple[int, ...]:
        return ()
