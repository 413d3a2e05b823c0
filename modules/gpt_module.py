"""GPTModule: the glue between Lightning, the model and the objectives. No mathematics and no I/O of its own."""

from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from modules.config import ModelConfig, ObjectiveConfig, OptimizerConfig, TrainingConfig
from modules.generation import sample
from modules.model import GPT
from modules.objectives import Batch, causal_loss, masked_loss, objective_weights, sum_of_losses
from modules.optimizer import build_optimizer, learning_rate, parameter_groups
from modules.validation import validation_sums

_LOSSES = {"clm": causal_loss, "mlm": masked_loss}


class GPTModule(LightningModule):
    """Trains one GPT on the causal and the masked objective, weighted by the phase that the step lies in.

    `step` counts finished optimizer steps. It alone decides phase and learning rate, and together with `data_offset`,
    the steps of data that were passed over, the data; Lightning's own counters are kept equal to it.

    Args:
        model: Shape of the Transformer.
        vocab_size: Tokens of the tokenizer.
        token_num_bytes: int [vocab_size], UTF-8 bytes that each token stands for; bits per byte need it.
        accumulation_steps: Micro-batches in a step on this worker.
        dropout_seed: Decides dropout masks together with step and micro-batch; differs between ranks.
    """

    token_num_bytes: Tensor

    def __init__(
        self,
        *,
        model: ModelConfig,
        vocab_size: int,
        token_num_bytes: np.ndarray,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        training: TrainingConfig,
        accumulation_steps: int,
        dropout_seed: int,
    ) -> None:
        super().__init__()
        self.model_config, self.objective, self.optimizer_config = model, objective, optimizer
        self.training_config, self.vocab_size = training, vocab_size
        self.accumulation_steps, self.dropout_seed = accumulation_steps, dropout_seed
        self.register_buffer("token_num_bytes", torch.from_numpy(token_num_bytes.astype(np.int64)), persistent=False)
        self.step = self.data_offset = 0
        self.last_metrics: dict[str, Tensor | float] = {}
        self._micro_losses: list[dict[str, Tensor]] = []

    def configure_model(self) -> None:
        """Build the model here: ZeRO-3 shards parameters while they are built. Values come from `initial_values`."""
        if not hasattr(self, "model"):
            self.model = GPT(self.model_config, self.vocab_size)
            if self.training_config.compile:
                self.model.compile()

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(parameter_groups(self.model, self.optimizer_config), self.optimizer_config)

    @property
    def objective_weights(self) -> dict[str, float]:
        """Weight of each objective that counts in the current step."""
        return objective_weights(self.objective, self.step, self.training_config.num_steps)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        micro = batch_idx % self.accumulation_steps
        if self.model_config.dropout:
            # a function of the step, so that a resumed run draws the same masks without stored generator states
            torch.manual_seed(hash((self.dropout_seed, self.step, micro)))
        if micro == 0:
            rate = learning_rate(self.optimizer_config, self.step, self.training_config.num_steps)
            for group in self.trainer.strategy.optimizers[0].param_groups:
                group["lr"] = rate
            self.last_metrics = {"optimizer/lr": rate}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        weights = self.objective_weights
        losses = {name: _LOSSES[name](self.model, batch) for name in weights}
        loss = sum_of_losses(losses, weights)
        self._micro_losses.append({"loss": loss.detach(), **{f"loss_{name}": v.detach() for name, v in losses.items()}})
        # here, before the optimizer moves: whether it may depends on the loss
        if (batch_idx + 1) % self.accumulation_steps == 0:
            for name in self._micro_losses[0]:
                self.last_metrics[f"train/{name}"] = torch.stack([losses[name] for losses in self._micro_losses]).mean()
            self._micro_losses.clear()
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # DeepSpeed counts micro-batches itself and is called for each of them
        if (batch_idx + 1) % self.accumulation_steps == 0:
            self.step += 1

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return this micro-batch's sums; see `validation.validation_sums`."""
        return validation_sums(self.model, batch, self.token_num_bytes)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[Tensor]:
        """Continue `batch["prompt_ids"]`; every rank takes the same number of steps, as ZeRO-3 needs."""
        return list(sample(self.model, **batch))
