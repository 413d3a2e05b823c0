from types import SimpleNamespace

import torch
from operations import Operations
from tiny_models import GPT2, VOCAB
from torch import Tensor

from modules.config import OptimizerConfig, TrainingConfig
from modules.data.batches import Batch, Share
from modules.gpt_module import GPTModule
from modules.model_config import ClassifierConfig, ModelConfig


class OneObjective:
    def validation_sums(self, model: object, batch: Batch) -> Tensor:
        return torch.tensor([1.0, torch.nan])


def built(training: TrainingConfig, model: ModelConfig = GPT2) -> GPTModule:
    module = GPTModule(
        model=model,
        vocab_size=VOCAB,
        objective=OneObjective(),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(),
        training=training,
        share=Share(1, 1),
        seed=0,
    )
    module.configure_model()
    return module


def test_the_head_compiles_its_loss_if_asked_to() -> None:
    assert not built(TrainingConfig()).model.head.compiles_loss
    assert built(TrainingConfig(head_loss="compiled")).model.head.compiles_loss
    classifier = GPT2.model_copy(update={"classifier": ClassifierConfig(labels=("a", "b"))})
    built(TrainingConfig(head_loss="compiled"), classifier)  # which has no head


def test_sums_of_a_repeated_batch_count_nothing() -> None:
    module = built(TrainingConfig())
    assert module.validation_step({"is_repeat": False}, 0)[0] == 1
    assert module.validation_step({}, 0)[0] == 1
    assert module.validation_step({"is_repeat": True}, 0).tolist() == [0, 0]


def test_a_batch_that_is_in_main_memory_is_taken_as_it_is() -> None:
    batch = {"input_ids": torch.zeros(1, 2, dtype=torch.int64), "step": 1}
    module = built(TrainingConfig())
    with Operations() as operations:
        assert module.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    assert not operations.counts


def test_the_loss_of_a_single_micro_batch_is_its_own_mean() -> None:
    module, loss = built(TrainingConfig()), torch.tensor(3.0)
    module.objective = SimpleNamespace(weights=lambda step: {"clm": 1.0})  # type: ignore[assignment]
    module._losses = lambda batch, names: {"clm": loss}  # type: ignore[method-assign, assignment]
    with Operations() as operations:
        module.training_step({}, 0)
    assert module.last_metrics == {"train/loss": loss, "train/loss_clm": loss}
    assert set(operations.counts) == {"aten::detach"}
