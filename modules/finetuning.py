"""The objective of fine-tuning: the examples of a task, of which tokens or labels are predicted."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from modules.classifier import classification_loss, classification_sums, weighted
from modules.config import TrainingConfig
from modules.data.batches import Batch, Share
from modules.data.example_batches import ExampleBatches, ExampleValidationBatches, PackOrder
from modules.data.example_data import ExampleData, ExampleSplit
from modules.data.tokenizer import Tokenizer
from modules.losses import LossSum
from modules.model import GPT
from modules.samples import Sample, example_sample
from modules.tasks.class_weights import class_weights
from modules.tasks.classification_metrics import validation_metrics
from modules.tasks.settings import ClassificationConfig, TaskConfig


class TokenFinetuning:
    """Prediction of the target tokens of packed examples, as in translation or dialogue; implements `Objective`."""

    loss_name = "clm"

    def __init__(self, data: ExampleData, training: TrainingConfig, seed: int) -> None:
        self._data, self._training, self._seed = data, training, seed
        self._order = PackOrder(self._train, training.global_batch_size, seed)

    @property
    def _train(self) -> ExampleSplit:
        return self._data.splits["train"]

    @property
    def tokenizer(self) -> Tokenizer:
        return self._data.tokenizer

    @property
    def global_batch_size(self) -> int:
        return self._training.global_batch_size

    @property
    def sequence_length(self) -> int:
        return max(1, len(self._train.tokens) // self._train.num_packs)

    def batches(self, share: Share, first_step: int) -> Iterator[Batch]:
        return ExampleBatches(self._train, share, self._seed).from_step(first_step)

    def samples(self, numbers: np.ndarray) -> list[Sample]:
        """Return what training samples hold.

        Args:
            numbers: int64 [n].
        """
        return [example_sample(self._data, self._order, number) for number in numbers.tolist()]

    def part_losses(self, name: str, model: GPT, sample: Sample) -> list[LossSum]:
        """Return `loss` of a sample's batch, by the parts of the sample, which are its examples."""
        hidden, targets = _hidden_of_targets(model, sample.batch), sample.batch["targets"]
        sizes = [part.num_targets for part in sample.parts]
        pieces = zip(hidden.split(sizes), targets.split(sizes), sizes, strict=True)
        return [LossSum(model.head(states, of_part), size) for states, of_part, size in pieces]

    def num_targets(self, data_step: int) -> Mapping[str, float]:
        return {self.loss_name: self._order.num_targets(data_step)}

    def num_tokens(self, data_step: int) -> int:
        return self._order.num_tokens(data_step)

    def source_tokens(self, data_step: int) -> Mapping[str, int]:
        return {}

    def weights(self, step: int) -> Mapping[str, float]:
        return {self.loss_name: 1.0}

    def loss(self, name: str, model: GPT, batch: Batch) -> LossSum:
        targets = batch["targets"]
        return LossSum(model.head(_hidden_of_targets(model, batch), targets), targets.numel())

    def is_milestone(self, step: int) -> bool:
        """Return whether an epoch ends within this step: the last of its examples is in its batch."""
        size, num_packs = self.global_batch_size, self._train.num_packs
        return step * size // num_packs > (step - 1) * size // num_packs or step == self._training.num_steps

    def validation_batches(self, share: Share, num_batches: int) -> Iterable[Batch] | None:
        held_out = self._data.splits["val"]
        return ExampleValidationBatches(held_out, share, num_batches) if held_out.num_packs else None

    def validation_sums(self, model: GPT, batch: Batch) -> Tensor:
        nats, correct = model.head.statistics(_hidden_of_targets(model, batch), batch["targets"])
        sums = (nats, batch["targets"].numel(), batch["num_bytes"], correct)
        return torch.stack([torch.as_tensor(value, dtype=torch.float64, device=nats.device) for value in sums])

    def validation_metrics(self, sums: Tensor) -> dict[str, float]:
        nats, targets, num_bytes, correct = sums.tolist()
        if not targets:
            return {}
        metrics = {"val/loss_clm": nats / targets, "val/perplexity": math.exp(min(nats / targets, 700.0))}
        metrics["val/token_accuracy"] = correct / targets
        return metrics | ({"val/bits_per_byte": nats / math.log(2) / num_bytes} if num_bytes else {})

    def prompts(self, number: int) -> Sequence[Sequence[int]]:
        held_out = self._data.splits["val"]
        return [_question(held_out, example) for example in range(min(number, len(held_out.offsets) - 1))]

    @property
    def sample_end_ids(self) -> tuple[int, ...]:
        return self.tokenizer.end_ids


class LabelFinetuning(TokenFinetuning):
    """Prediction of the class of each example; implements `Objective`."""

    loss_name = "classification"

    def __init__(self, data: ExampleData, training: TrainingConfig, seed: int, task: ClassificationConfig) -> None:
        train = data.splits["train"]
        assert train.labels is not None
        counts = np.bincount(train.labels, minlength=len(data.labels))
        self._weights = class_weights(dict(zip(data.labels, counts.tolist(), strict=True)), task.class_weights)
        weights = np.array(self._weights)[train.labels[train.order]]
        splits = {**data.splits, "train": replace(train, pack_targets=weights)}
        super().__init__(replace(data, splits=splits), training, seed)

    def batches(self, share: Share, first_step: int) -> Iterator[Batch]:
        for batch in super().batches(share, first_step):
            yield weighted(batch, self._weights)

    def samples(self, numbers: np.ndarray) -> list[Sample]:
        return [replace(one, batch=weighted(one.batch, self._weights)) for one in super().samples(numbers)]

    def part_losses(self, name: str, model: GPT, sample: Sample) -> list[LossSum]:
        return [self.loss(name, model, sample.batch)]  # each example is a sample

    def loss(self, name: str, model: GPT, batch: Batch) -> LossSum:
        return classification_loss(model, batch)

    def validation_batches(self, share: Share, num_batches: int) -> Iterable[Batch] | None:
        batches = super().validation_batches(share, num_batches)
        return None if batches is None else _Weighted(batches, self._weights)

    def validation_sums(self, model: GPT, batch: Batch) -> Tensor:
        return classification_sums(model, batch)

    def validation_metrics(self, sums: Tensor) -> dict[str, float]:
        return validation_metrics(sums.cpu())

    def prompts(self, number: int) -> Sequence[Sequence[int]]:
        return []


@dataclass(frozen=True)
class _Weighted(Iterable[Batch]):
    """Batches with the weights of their examples' classes, made anew in each validation."""

    batches: Iterable[Batch]
    weights: Sequence[float]

    def __iter__(self) -> Iterator[Batch]:
        return (weighted(batch, self.weights) for batch in self.batches)


def finetuning(data: ExampleData, training: TrainingConfig, seed: int, task: TaskConfig) -> TokenFinetuning:
    """Return the objective of a task on its prepared examples."""
    if isinstance(task, ClassificationConfig):
        return LabelFinetuning(data, training, seed, task)
    return TokenFinetuning(data, training, seed)


def _hidden_of_targets(model: GPT, batch: Batch) -> Tensor:
    """Return the hidden states [M, D] of the positions that predict a target; only these enter the head."""
    hidden = model(batch["input_ids"], lengths=batch["lengths"], offsets=batch.get("offsets"))
    return hidden[0].index_select(0, batch["target_positions"])


def _question(split: ExampleSplit, example: int) -> list[int]:
    """Return the tokens of an example before its first target."""
    assert split.is_target is not None
    start, end = split.offsets[example], split.offsets[example + 1]
    first = int(np.flatnonzero(split.is_target[start:end])[0])
    return split.tokens[start : start + first].tolist()
