"""How well a model predicts held-out text: sums over batches and workers, and the metrics computed from them."""

import math

import torch
from torch import Tensor

from modules.data.batches import Batch
from modules.losses import Statistics, causal_statistics, masked_statistics
from modules.model import GPT


def validation_sums(model: GPT, batch: Batch) -> Tensor:
    """Return float64 [6]: nats, targets and bytes of causal prediction; nats, targets and hits of masked prediction.

    Args:
        model: In evaluation mode.
        batch: A micro-batch with `num_bytes`; without masked inputs the last three sums are 0.
    """
    causal = causal_statistics(model, batch)
    masked = masked_statistics(model, batch) if "mlm_targets" in batch else Statistics(0.0, 0, 0)
    sums = (causal.nats, causal.count, batch["num_bytes"], masked.nats, masked.count, masked.correct)
    device = batch["targets"].device
    return torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in sums])


def validation_metrics(sums: Tensor) -> dict[str, float]:
    """Return the metrics by name, from float64 [6] sums over all batches and workers.

    Bits per byte do not depend on the tokenizer: the loss of all tokens is divided by the bytes of text for which they
    stand. They are left out if nobody counted those bytes.
    """
    nats, targets, num_bytes, masked_nats, masked_targets, hits = sums.tolist()
    loss = nats / targets
    causal = {
        "val/loss_clm": loss,
        "val/perplexity": math.exp(min(loss, 700.0)),  # exp overflows float64 above 709
    }
    if num_bytes > 0:  # not a number where it is not known
        causal["val/bits_per_byte"] = nats / math.log(2) / num_bytes
    if not masked_targets:
        return causal
    return {**causal, "val/loss_mlm": masked_nats / masked_targets, "val/mlm_accuracy": hits / masked_targets}
