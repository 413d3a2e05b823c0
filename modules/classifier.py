"""Classification of texts: the pooled hidden state of each, its logits, its loss and what validation sums up.

Texts lie one after another in a single row, without padding, so no token is mistaken for it.
Shapes: N positions of all examples, D width, E examples, C classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.data.batches import Batch
from modules.losses import LossSum
from modules.model import GPT


def class_logits(model: GPT, input_ids: Tensor, lengths: Sequence[int], offsets: Tensor | None = None) -> Tensor:
    """Return the logits of each class for each example, float32 [E, C].

    Args:
        model: One with a classifier.
        input_ids: [1, N], int64, the tokens of all examples, one after another.
        lengths: Number of tokens of each example, on the host.
        offsets: int32 [E + 1], the first token of each example, and N; None takes them from `lengths`.
    """
    assert model.config.classifier is not None
    attention = model.config.classifier.attention
    hidden = model(input_ids, causal=attention == "causal", lengths=lengths, offsets=offsets)
    pooled = (last_tokens if attention == "causal" else means)(hidden, lengths)
    # a few products, whose rounding to half precision would make ties and coarse probabilities
    with torch.autocast(hidden.device.type, enabled=False):
        return model.score(pooled.to(model.score.weight.dtype)).float()


def last_tokens(hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the hidden state [E, D] of each example's last token, whatever that token is, from [1, N, D]."""
    assert min(lengths) > 0, "an example has at least one token"
    return hidden[0, torch.tensor(lengths).cumsum(0).to(hidden.device) - 1]


def means(hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the mean hidden state of each example's tokens, float32 [E, D], from [1, N, D]."""
    assert min(lengths) > 0, "an example has at least one token"
    # a sum by index would add in another order each time on a GPU
    return torch.stack([example.float().mean(0) for example in hidden[0].split(list(lengths))])


def weighted(batch: Batch, class_weights: Sequence[float]) -> Batch:
    """Return a batch that is still on the host, with the weights of its examples' classes for the losses below."""
    weights = torch.tensor(class_weights, dtype=torch.float64)[batch["labels"]]
    return {**batch, "label_weights": weights.float(), "weight_sum": weights.sum().item()}


def classification_loss(model: GPT, batch: Batch) -> LossSum:
    """Return the cross entropy of the examples, each multiplied by the weight of its class, summed.

    Divided by the sum of the weights in the whole global batch it is torch's
    `cross_entropy(logits, labels, weight=class_weights)` of that batch, however the batch is divided.

    Args:
        model: One with a classifier.
        batch: `input_ids` [1, N] and `lengths` as for `class_logits`; `labels`, int64 [E]; and from `weighted` the
            `label_weights`, float32 [E], and `weight_sum`, their sum as a number on the host.
    """
    return _loss(class_logits(model, batch["input_ids"], batch["lengths"], batch.get("offsets")), batch)


@torch.no_grad()
def classification_sums(model: GPT, batch: Batch) -> Tensor:
    """Return what validation sums up: the loss, the weights, and the confusion matrix row by row, float64 [2 + C x C].

    A row of the matrix holds the examples of one class, a column those that were taken for one.
    """
    logits = class_logits(model, batch["input_ids"], batch["lengths"], batch.get("offsets"))
    num_classes = logits.shape[1]
    cells = batch["labels"] * num_classes + logits.argmax(1)
    confusion = torch.bincount(cells, minlength=num_classes**2).double()
    loss, weight = _loss(logits, batch)
    return torch.cat([loss.double()[None], confusion.new_tensor([weight]), confusion])


def _loss(logits: Tensor, batch: Batch) -> LossSum:
    losses = F.cross_entropy(logits, batch["labels"], reduction="none")
    return LossSum((losses * batch["label_weights"]).sum(), batch["weight_sum"])
