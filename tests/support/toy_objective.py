"""A toy objective whose samples are packs of examples with different numbers of targets, some of them none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modules.config import TokenizerConfig
from modules.data.batches import Batch, Share
from modules.data.tokenizer import Tokenizer, build_tokenizer
from modules.losses import LossSum
from modules.model import GPT
from orchestrator.storage.store import Storage

GLOBAL_BATCH_SIZE, LENGTH = 24, 12


@dataclass(frozen=True)
class ToyObjective:
    """Sample n predicts the next token at its first `n % 7` positions, and also, as another loss, at its last few.

    It is a pack of two examples.
    """

    claims: float = 1.0
    """The number of targets that it reports, as a multiple of the true number."""

    data_name = "nowhere"

    def open(self, storage: Storage) -> "ToyObjective":
        return self

    @property
    def tokenizer(self) -> Tokenizer:
        return build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None)

    @property
    def global_batch_size(self) -> int:
        return GLOBAL_BATCH_SIZE

    @property
    def sequence_length(self) -> int:
        return LENGTH

    @property
    def sample_end_ids(self) -> tuple[int, ...]:
        return ()

    def prompts(self, number: int) -> Sequence[Sequence[int]]:
        return [[0]]

    def num_tokens(self, data_step: int) -> int:
        return GLOBAL_BATCH_SIZE * LENGTH

    def source_tokens(self, data_step: int) -> Mapping[str, int]:
        return {}

    def batches(self, share: Share, first_step: int) -> Iterator[Batch]:
        step = first_step
        while True:
            for places in share.places():
                yield _batch(step * GLOBAL_BATCH_SIZE + places, step)
            step += 1

    def num_targets(self, data_step: int) -> Mapping[str, float]:
        batch = _batch(data_step * GLOBAL_BATCH_SIZE + np.arange(GLOBAL_BATCH_SIZE), data_step)
        return {name: self.claims * int(batch[name].sum()) for name in ("first", "last")}

    def weights(self, step: int) -> Mapping[str, float]:
        return {"first": 1.0, "last": 0.5}

    def loss(self, name: str, model: GPT, batch: Batch) -> LossSum:
        chosen = batch[name].flatten()
        hidden = model(batch["input_ids"].reshape(1, -1), lengths=batch["lengths"])
        total = model.head(hidden[0, chosen], batch["targets"].flatten()[chosen])
        return LossSum(total, int(chosen.sum()))

    def is_milestone(self, step: int) -> bool:
        return False

    def validation_batches(self, share: Share, num_batches: int) -> None:
        return None

    def validation_sums(self, model: GPT, batch: Batch) -> Tensor:
        raise AssertionError("nothing is held out")

    def validation_metrics(self, sums: Tensor) -> dict[str, float]:
        raise AssertionError("nothing is held out")


def _batch(samples: np.ndarray, step: int) -> Batch:
    rows = [np.random.default_rng(int(sample)).integers(0, 256, LENGTH + 1) for sample in samples]
    ids = torch.from_numpy(np.stack(rows))
    firsts = [int(sample) % 5 + 1 for sample in samples]
    numbers, places = torch.from_numpy(samples)[:, None], torch.arange(LENGTH)
    return {
        "input_ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "lengths": [length for first in firsts for length in (first, LENGTH - first)],
        "first": places < numbers % 7,
        "last": places >= LENGTH - numbers % 3,
        "sample_ids": torch.from_numpy(samples),
        "step": step,
    }
