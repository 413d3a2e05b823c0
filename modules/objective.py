"""The interface between what a model learns and how it is trained. Pretraining is one objective, each task another.

The training code knows an objective through this interface alone. Its answers depend only on the data, the seed and
the step, so any worker can request any step in any order.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from modules.data.batches import Batch, Share
from modules.data.tokenizer import Tokenizer
from modules.losses import LossSum
from modules.model import GPT


class Objective(Protocol):
    """What a model learns: its batches, losses and validation metrics.

    A training step has one global batch and one or several named losses (`clm`, `mlm`, …). Each loss is divided by its
    number of targets in the global batch, so it does not depend on the number of workers, accumulation or padding.
    A data step numbers a global batch. It runs ahead of the optimizer step once a rollback has skipped data.
    """

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model's token ids."""
        ...

    @property
    def global_batch_size(self) -> int:
        """Samples in a step, over all workers."""
        ...

    @property
    def sequence_length(self) -> int:
        """Largest number of positions in a sample."""
        ...

    def batches(self, share: Share, first_step: int) -> Iterator[Batch]:
        """Yield a worker's micro-batches from data step `first_step` on, in order and without end.

        Each batch holds `step`, its data step, and `sample_ids`, int64 [B], besides the inputs of the losses.
        """
        ...

    def num_targets(self, data_step: int) -> Mapping[str, float]:
        """Return, by loss, the number of targets (or the sum of their weights) in the global batch of a data step."""
        ...

    def num_tokens(self, data_step: int) -> int:
        """Return the tokens that the model reads in the global batch of a data step, over all workers."""
        ...

    def source_tokens(self, data_step: int) -> Mapping[str, int]:
        """Return the tokens of `num_tokens` by the source of a mixture; empty if there are no sources."""
        ...

    def weights(self, step: int) -> Mapping[str, float]:
        """Return the weight of each loss in the sum that a step minimises; losses of weight 0 are left out."""
        ...

    def loss(self, name: str, model: GPT, batch: Batch) -> LossSum:
        """Return the loss `name`, summed over the targets of a micro-batch."""
        ...

    def is_milestone(self, step: int) -> bool:
        """Return whether to validate after `step` finished steps, in addition to the validation interval."""
        ...

    def validation_batches(self, share: Share, num_batches: int) -> Iterable[Batch] | None:
        """Return a worker's micro-batches of a validation, from at most `num_batches` global batches.

        None if no data is held out. Every worker has the same number, because under ZeRO-3 all compute together; a
        batch with `is_repeat` true is computed and not counted.
        """
        ...

    def validation_sums(self, model: GPT, batch: Batch) -> Tensor:
        """Return a micro-batch's terms of the sums that a validation needs, float64 [n].

        The sums run over micro-batches and workers. The model is in `eval` mode.
        """
        ...

    def validation_metrics(self, sums: Tensor) -> dict[str, float]:
        """Return the validation metrics by name, from the sums over all batches of the validation."""
        ...

    def prompts(self, number: int) -> Sequence[Sequence[int]]:
        """Return the token ids of at most `number` prompts that the model continues after a validation.

        Fewer are continued several times, so that there are about `number` samples of its text.
        """
        ...

    @property
    def sample_end_ids(self) -> tuple[int, ...]:
        """Tokens that end such a sample; without one it goes on to its longest length."""
        ...
