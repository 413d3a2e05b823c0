"""How well a model predicts held-out text: sums that add up over batches and workers, and the figures made of them."""

import math

import torch
from torch import Tensor

from modules.model import GPT
from modules.objectives import Batch, LossSums, causal_statistics, masked_statistics


def validation_sums(model: GPT, batch: Batch, token_num_bytes: Tensor) -> Tensor:
    """Return float64 [6]: nats, targets and bytes of next-token prediction; nats, targets and hits of masked.

    Args:
        model: In evaluation mode.
        batch: A micro-batch; without masked inputs the last three sums are 0.
        token_num_bytes: int64 [V], UTF-8 bytes that each token stands for.
    """
    causal = causal_statistics(model, batch)
    masked = masked_statistics(model, batch) if "mlm_targets" in batch else LossSums(0.0, 0, 0)
    num_bytes = token_num_bytes[batch["targets"]].sum()
    sums = (causal.nats, causal.count, num_bytes, masked.nats, masked.count, masked.correct)
    return torch.stack([torch.as_tensor(value, dtype=torch.float64, device=num_bytes.device) for value in sums])


def validation_metrics(sums: Tensor) -> dict[str, float]:
    """Return the figures of float64 [6] sums over all batches and workers, by metric name.

    Bits per byte do not depend on the tokenizer: all nats of the tokens over all bytes that they stand for.
    """
    nats, targets, num_bytes, masked_nats, masked_targets, hits = sums.tolist()
    loss = nats / targets
    causal = {
        "val/loss_clm": loss,
        "val/perplexity": math.exp(min(loss, 700.0)),  # float64 ends at exp(709)
        "val/bits_per_byte": nats / math.log(2) / num_bytes,
    }
    if not masked_targets:
        return causal
    return {**causal, "val/loss_mlm": masked_nats / masked_targets, "val/mlm_accuracy": hits / masked_targets}
