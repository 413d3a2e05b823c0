"""Positions that the masked objective predicts, and what replaces them (Devlin et al. 2018, section 3.1).

B sequences, T positions, K predicted positions.
"""

import numpy as np

from modules.config import ObjectiveConfig
from modules.data.sampler import GAMMA, keys, mix

POSITION_STREAM, KIND_STREAM, TOKEN_STREAM = 3, 4, 5
UNWANTED_BIT = np.uint64(2**63)


def num_masked(objective: ObjectiveConfig, length: int) -> int:
    """Return K, the number of positions predicted in every sequence of `length`."""
    candidates = length - int(objective.mlm_shift)
    return min(candidates, max(1, round(objective.mlm_probability * length)))


class Masker:
    """Choose and corrupt positions by a hash of (seed, sample, position): a sample is the same on every worker."""

    def __init__(
        self, objective: ObjectiveConfig, seed: int, special_ids: tuple[int, ...], mask_id: int, vocab_size: int
    ):
        self._objective = objective
        self._seed = seed
        self._mask_id = mask_id
        self._is_special = np.zeros(vocab_size, dtype=bool)
        self._is_special[list(special_ids)] = True
        self._ordinary_ids = np.flatnonzero(~self._is_special)

    def mask(self, inputs: np.ndarray, samples: np.ndarray, document_ids: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Mask a batch.

        Args:
            inputs: int64 [B, T].
            samples: int64 [B], the numbers of the samples.
            document_ids: int32 [B, T] if attention stays within documents, else None.

        Returns:
            Corrupted inputs int64 [B, T]; positions whose hidden states are used int64 [B, K], ascending; and the
            tokens to predict int64 [B, K].
        """
        chosen = self._choose(inputs, samples, document_ids)
        rows = np.arange(len(inputs))[:, None]
        targets = inputs[rows, chosen]
        corrupted = inputs.copy()
        corrupted[rows, chosen] = self._corrupt(targets, samples, chosen)
        return corrupted, chosen - int(self._objective.mlm_shift), targets

    def _choose(self, inputs: np.ndarray, samples: np.ndarray, document_ids: np.ndarray | None) -> np.ndarray:
        """Return the K positions with the smallest hashes, int64 [B, K], ascending; unwanted ones are chosen last."""
        length = inputs.shape[1]
        order = self._hash(samples, np.arange(length)[None], POSITION_STREAM) >> np.uint64(1)
        unwanted = self._is_special[inputs]
        if self._objective.mlm_shift and document_ids is not None:
            # the position before belongs to another document and cannot attend to this one
            unwanted[:, 1:] |= document_ids[:, 1:] != document_ids[:, :-1]
        order |= unwanted * UNWANTED_BIT
        if self._objective.mlm_shift:
            order[:, 0] = np.iinfo(np.uint64).max
        count = num_masked(self._objective, length)
        chosen = np.argpartition(order, count - 1, axis=1)[:, :count]
        chosen.sort(axis=1)
        return chosen

    def _corrupt(self, targets: np.ndarray, samples: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        kinds = self._objective.mlm_corruption
        draw = (self._hash(samples, chosen, KIND_STREAM) >> np.uint64(11)) * 2.0**-53
        drawn = self._hash(samples, chosen, TOKEN_STREAM) % np.uint64(len(self._ordinary_ids))
        replaced = np.where(draw < kinds.mask + kinds.random, self._ordinary_ids[drawn], targets)
        return np.where(draw < kinds.mask, self._mask_id, replaced)

    def _hash(self, samples: np.ndarray, positions: np.ndarray, stream: int) -> np.ndarray:
        """Return uint64 hashes of the shape to which `positions` and [B, 1] broadcast."""
        base = keys(self._seed, samples, stream)[:, None]
        return mix(base + GAMMA * (positions.astype(np.uint64) + np.uint64(1)))
