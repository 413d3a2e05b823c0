"""GPTModule connects Lightning, the model and the objective. It has no mathematics and no I/O of its own."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from modules.config import OptimizerConfig, TrainingConfig
from modules.data.ahead import Packed
from modules.data.batches import Batch, Share
from modules.generation.sampler import sample
from modules.generation.sampling import Sampling
from modules.losses import weighted_sum
from modules.model import GPT
from modules.model_config import ModelConfig
from modules.objective import Objective
from modules.optimizer import build_optimizer, parameter_groups, set_learning_rate
from modules.schedule import learning_rate

_PLAIN_TYPES = frozenset({str, int, float, dict, type(None)})


class GPTModule(LightningModule):
    """Train one GPT on the losses of an objective.

    `step` counts finished optimizer steps and alone decides the phase and the learning rate. `step + data_offset`
    decides the data; `data_offset` counts the data steps that were skipped. `num_tokens` counts the tokens of the
    finished steps, over all workers. Lightning's own counters are kept equal to `step`.

    Args:
        model: Shape of the Transformer.
        vocab_size: Size of the tokenizer's vocabulary.
        objective: What the model learns.
        share: Which part of each global batch this worker computes.
        seed: Decides the initial weights and, together with rank, step and micro-batch, the dropout masks.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        vocab_size: int,
        objective: Objective,
        optimizer: OptimizerConfig,
        training: TrainingConfig,
        share: Share,
        seed: int,
    ) -> None:
        super().__init__()
        self.model_config, self.vocab_size, self.objective = model, vocab_size, objective
        self.optimizer_config, self.training_config = optimizer, training
        self.share, self.seed = share, seed
        self.accumulation_steps = share.accumulation_steps
        self.step = self.data_offset = self.num_tokens = 0
        self.source_tokens: Counter[str] = Counter()
        """`num_tokens` by the source of a mixture."""
        self.last_metrics: dict[str, Tensor | float] = {}
        self.num_targets: dict[str, tuple[float, float]] = {}
        """By loss: targets counted in this worker's last step, and the objective's number for the global batch."""
        self._micro_losses: list[dict[str, Tensor]] = []

    def __setattr__(self, name: str, value: Any) -> None:
        # torch looks at whether it is a parameter, which takes 3 µs, and Lightning sets fifty names in a step
        if type(value) in _PLAIN_TYPES and name in self.__dict__:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Build the model in this hook, where ZeRO-3 shards new parameters. Their values come from `initial_values`."""
        if not hasattr(self, "model"):
            self.model = GPT(self.model_config, self.vocab_size)
            self.model.activation_checkpointing = self.training_config.activation_checkpointing
            if self.model_config.classifier is None:
                self.model.head.compiles_loss = self.training_config.head_loss == "compiled"
            if self.training_config.compile:
                self.model.compile()

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(parameter_groups(self.model, self.optimizer_config), self.optimizer_config)

    def ends_step(self, batch_idx: int) -> bool:
        """Return whether this micro-batch, counted from 0 through the whole fit, is the last one of its step."""
        return (batch_idx + 1) % self.accumulation_steps == 0

    def transfer_batch_to_device(self, batch: Batch | Packed, device: torch.device, dataloader_idx: int) -> Batch:
        """Take a batch to the device, a packed one in one copy."""
        if isinstance(batch, Packed):
            return batch.to(device)
        if device.type == "cpu":  # where batches are made; Lightning looks through each for what might be elsewhere
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        micro = batch_idx % self.accumulation_steps
        if self.model_config.draws_masks:
            # the seed is a function of the step, so a resumed run draws the same masks without stored generator states
            torch.manual_seed(hash((hash((self.seed, self.share.rank)), self.step, micro)))
        if micro == 0:
            rate = learning_rate(self.optimizer_config, self.step, self.training_config.num_steps)
            set_learning_rate(self.trainer.strategy.optimizers[0].param_groups, rate)
            self.last_metrics, self.num_targets = {"optimizer/lr": rate}, {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        weights = self.objective.weights(self.step)
        losses = self._losses(batch, weights)
        loss = weighted_sum(losses, weights)
        self._micro_losses.append({"loss": loss.detach(), **{f"loss_{name}": v.detach() for name, v in losses.items()}})
        # computed before the optimizer step, because the loss decides whether that step is taken
        if self.ends_step(batch_idx):
            for name in self._micro_losses[0]:
                self.last_metrics[f"train/{name}"] = _mean([losses[name] for losses in self._micro_losses])
            self._micro_losses.clear()
        return loss

    def _losses(self, batch: Batch, names: Iterable[str]) -> dict[str, Tensor]:
        """Return each loss, scaled so that its mean over micro-batches and workers is the mean over all targets.

        Lightning averages over micro-batches, DDP and ZeRO over workers. The sum of a micro-batch is therefore divided
        by the number of targets in the global batch and by the micro-batch's share of the global batch, never by the
        number of targets that it happens to hold.
        """
        share = self.share.micro_batch_size / self.share.global_batch_size
        expected = self.objective.num_targets(batch["step"])
        losses = {}
        for name in names:
            loss = self.objective.loss(name, self.model, batch)
            losses[name] = loss.total / (expected[name] * share)
            seen, _ = self.num_targets.get(name, (0.0, 0.0))
            self.num_targets[name] = seen + loss.num_targets, expected[name]
        return losses

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # DeepSpeed counts micro-batches itself, so this hook is called for each of them
        if self.ends_step(batch_idx):
            self.num_tokens += self.objective.num_tokens(self.step + self.data_offset)
            self.source_tokens.update(self.objective.source_tokens(self.step + self.data_offset))
            self.step += 1

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return this micro-batch's sums, 0 if it only repeats another; see `Objective.validation_sums`."""
        sums = self.objective.validation_sums(self.model, batch)
        return torch.zeros_like(sums) if batch.get("is_repeat") else sums

    def predict_step(self, batch: tuple[Sequence[Sequence[int]], Sampling], batch_idx: int) -> list[Tensor]:
        """Continue prompts. Every rank takes the same number of steps, as ZeRO-3 requires."""
        return list(sample(self.model, *batch))


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean() if len(values) > 1 else values[0]
