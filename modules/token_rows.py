"""Rows of the vocabulary that are trained while the other rows are frozen, as those of new tokens.

Shapes: K such tokens, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenRows(NamedTuple):
    """The rows of some tokens, which are taken instead of those in the weight."""

    tokens: Tensor
    """[K], int64."""
    rows: Tensor
    """[K, D]."""


class TrainedRows(nn.Module):
    """A layer with a row for each token, some of which may be trained while the others are frozen.

    The trained rows are a parameter of the layer's own, so that ZeRO-3 gathers them with its weight.
    """

    trained_rows: nn.Parameter | None

    def train_rows(self, tokens: Sequence[int], rows: nn.Parameter) -> None:
        """Take these rows instead of those in the weight.

        Args:
            tokens: Numbers of K tokens.
            rows: [K, D]; two layers with tied weights share them.
        """
        self.trained_rows = rows
        # by numpy, because ZeRO-3 replaces torch's constructors while it builds a model
        self._tokens = torch.from_numpy(np.array(tokens, dtype=np.int64))

    def token_rows(self, device: torch.device) -> TokenRows | None:
        """Return the trained rows; None if there are none."""
        if self.trained_rows is None:
            return None
        if self._tokens.device != device:
            self._tokens = self._tokens.to(device)
        return TokenRows(self._tokens, self.trained_rows)


def embedded(ids: Tensor, x: Tensor, own: TokenRows) -> Tensor:
    """Return the embeddings x [..., D] of tokens [...] with the rows of some of them in place of what x has."""
    is_one = ids[..., None] == own.tokens
    rows = F.embedding(is_one.int().argmax(-1), own.rows)
    return torch.where(is_one.any(-1, keepdim=True), rows, x)
