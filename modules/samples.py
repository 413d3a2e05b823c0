"""What single samples of a training hold: the documents in a window of text, or the examples in a pack.

They are found by the objects that make the batches of the training, so both agree.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from modules.data.batches import Batch, Batches
from modules.data.example_batches import PackOrder, RowMaker
from modules.data.example_data import ExampleData
from modules.data.mixed_data import MixedData
from modules.data.mixture import Mixture

_NUM_READERS = 8


class Part(NamedTuple):
    """A document, as far as it lies in a window; or an example."""

    number: int
    """Of the document or the example, in the training split of its source."""
    start: int
    """Its first token within the sample."""
    stop: int
    """The token after its last one."""
    is_begun: bool = False
    """Whether it begins before the window."""
    num_targets: int = 0
    """Tokens of an example that are predicted."""


@dataclass(frozen=True)
class Sample:
    """A training sample."""

    number: int
    """Counted from 0 over the whole training."""
    source: str
    """Its source in a mixture; empty for a single text and for a task."""
    position: int
    """Where the window begins among the tokens of its source; or the number of the pack."""
    tokens: np.ndarray
    """int64 [n]: of a window all inputs and the token after them."""
    parts: tuple[Part, ...]
    """In their order."""
    batch: Batch
    """The micro-batch of this sample alone."""
    is_target: np.ndarray | None = None
    """bool [n], where an example's tokens are predicted; None for a window, of which all but the first are."""
    label: str | None = None
    """The class of an example."""


def window_samples(data: MixedData, mixture: Mixture, batches: Batches, numbers: np.ndarray) -> list[Sample]:
    """Return the windows of text that samples, int64 [n], are; all of them are fetched at once, and nothing else."""
    batches.plan(numbers)
    names, texts = [*data.texts], [*data.texts.values()]

    def sample(number: int, source: int, start: int) -> Sample:
        batch = batches.of(np.array([number]))
        tokens = torch.cat([batch["input_ids"][0], batch["targets"][0, -1:]]).numpy()
        documents = texts[source].train.documents(start, len(tokens))
        parts = tuple(Part(of, max(begin, 0), stop, begin < 0) for of, begin, stop in documents)
        return Sample(number, names[source], start, tokens, parts, batch)

    # which documents they are is looked up in a table, which lies in a store as well
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return [*pool.map(sample, numbers.tolist(), *(of.tolist() for of in mixture.locate(numbers)))]


def example_sample(data: ExampleData, order: PackOrder, number: int) -> Sample:
    """Return the pack of examples that a sample is."""
    split, maker, pack = data.splits["train"], RowMaker(data.splits["train"]), order.pack(number)
    examples = maker.examples(np.array([pack]))
    bounds = [(int(split.offsets[one]), int(split.offsets[one + 1])) for one in examples]
    flags = [None if split.is_target is None else split.is_target[first:end].astype(bool) for first, end in bounds]
    stops = np.cumsum([end - first for first, end in bounds]).tolist()
    parts = tuple(
        Part(one, start, stop, num_targets=0 if of is None else int(of.sum()))
        for one, start, stop, of in zip(examples.tolist(), [0, *stops], stops, flags, strict=False)
    )
    return Sample(
        number=number,
        source="",
        position=pack,
        tokens=np.concatenate([split.tokens[first:end] for first, end in bounds]).astype(np.int64),
        parts=parts,
        batch=maker.make(np.array([pack]), order.step(number)),
        is_target=np.concatenate([of for of in flags if of is not None]) if split.is_target is not None else None,
        label=None if split.labels is None else data.labels[int(split.labels[examples[0]])],
    )
