"""Validation of each source of a mixture, and of all by their weights."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from modules.data.batches import Batch, ValidationBatches
from modules.validation import validation_metrics

NUM_SUMS = 6
"""Of one text; see `validation_sums`."""


class MixedValidationBatches:
    """The validation batches of several sources, one source after the other; each batch says in `source` which."""

    def __init__(self, of_sources: Mapping[int, ValidationBatches]) -> None:
        """Join the batches of the sources that hold out text, by the source's number."""
        self._of_sources = of_sources

    def __len__(self) -> int:
        """Return the number of this worker's micro-batches."""
        return sum(map(len, self._of_sources.values()))

    def __iter__(self) -> Iterator[Batch]:
        for source, batches in self._of_sources.items():
            for batch in batches:
                yield {**batch, "source": source}


def spread_sums(sums: Tensor, source: int, num_sources: int) -> Tensor:
    """Return the sums of a micro-batch at the place of its source, float64 [num_sources x NUM_SUMS]."""
    spread = torch.zeros(num_sources, NUM_SUMS, dtype=sums.dtype, device=sums.device)
    spread[source] = sums
    return spread.reshape(-1)


def mixed_metrics(sums: Tensor, names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Return the validation metrics of all sources together, and of each as `val/NAME/…`.

    A loss of all is the mean of the sources' losses by their weights, so their held-out texts may have any size.

    Args:
        sums: float64 [sources x NUM_SUMS]; all 0 for a source that holds out nothing.
        weights: Of the sources; if none that holds out text has any, those count alike.
    """
    of_source = sums.reshape(len(names), NUM_SUMS)
    measured = [number for number, counted in enumerate(of_source[:, 1].tolist()) if counted]
    if not any(weights[number] for number in measured):
        weights = [1.0] * len(names)
    total = sum(weights[number] * _by_target(of_source[number]) for number in measured if weights[number])
    assert isinstance(total, Tensor), "a validation has batches"
    metrics = validation_metrics(total)
    for number in measured:
        own = validation_metrics(of_source[number])
        metrics |= {f"val/{names[number]}/{name.removeprefix('val/')}": value for name, value in own.items()}
    return metrics


def _by_target(sums: Tensor) -> Tensor:
    """Return the sums of one source for one causal and one masked target."""
    causal, masked = sums[:3] / sums[1], sums[3:]
    return torch.cat([causal, masked / masked[1] if masked[1] else masked])
