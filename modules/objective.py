"""The one interface between what is learned and how it runs: pretraining is one objective, each task another.

Whoever trains knows nothing else of what is learned. Everything here is a function of the data, the seed and the step,
so that any worker can ask for any step, in whatever order.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from modules.data.batches import Batch, Share
from modules.data.tokenizer import Tokenizer
from modules.losses import LossSum
from modules.model import GPT


class Objective(Protocol):
    """What is learned: batches, the losses of a micro-batch, and what a validation sums up.

    A step of training has one global batch, and one or several losses by name (`clm`, `mlm`, …). Each loss is divided
    by its number of targets in the global batch, so that neither workers nor accumulation nor padding change it.
    """

    @property
    def tokenizer(self) -> Tokenizer:
        """What the model's token numbers mean."""
        ...

    @property
    def global_batch_size(self) -> int:
        """Samples in a step, over all workers."""
        ...

    @property
    def sequence_length(self) -> int:
        """Positions that a sample takes at most."""
        ...

    def batches(self, share: Share, first_step: int) -> Iterator[Batch]:
        """Give a worker's micro-batches of data step `first_step` and of all after it, in order and without end.

        Each holds `step`, its data step, and `sample_ids`, int64 [B], besides what the losses need.
        """
        ...

    def num_targets(self, data_step: int) -> Mapping[str, float]:
        """Return each loss's number of targets (or the sum of their weights) in the global batch of a data step."""
        ...

    def weights(self, step: int) -> Mapping[str, float]:
        """Return the weights of the losses that count in a step, in the sum that is minimised."""
        ...

    def loss(self, name: str, model: GPT, batch: Batch) -> LossSum:
        """Return one of the losses, summed over a micro-batch's targets."""
        ...

    def is_milestone(self, step: int) -> bool:
        """Whether a validation follows the step just finished, whatever its interval."""
        ...

    def validation_batches(self, share: Share, num_batches: int) -> Iterable[Batch] | None:
        """Return a worker's micro-batches of each validation, of at most `num_batches` global batches.

        None where nothing is held out.
        """
        ...

    def validation_sums(self, model: GPT, batch: Batch) -> Tensor:
        """Return what a validation sums up over micro-batches and workers, float64 [n]; the model is in `eval` mode."""
        ...

    def validation_metrics(self, sums: Tensor) -> dict[str, float]:
        """Return a validation's figures by metric name, from the sums over all of its batches."""
        ...

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Token numbers that are continued after a validation, to show what the model writes."""
        ...
