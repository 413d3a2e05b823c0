import torch
from tiny_models import GPT2, VOCAB
from torch import Tensor

from modules.config import OptimizerConfig, TrainingConfig
from modules.data.batches import Batch, Share
from modules.gpt_module import GPTModule


class OneObjective:
    def validation_sums(self, model: object, batch: Batch) -> Tensor:
        return torch.tensor([1.0, torch.nan])


def test_sums_of_a_repeated_batch_count_nothing() -> None:
    module = GPTModule(
        model=GPT2,
        vocab_size=VOCAB,
        objective=OneObjective(),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(),
        training=TrainingConfig(),
        share=Share(1, 1),
        seed=0,
    )
    module.configure_model()
    assert module.validation_step({"is_repeat": False}, 0)[0] == 1
    assert module.validation_step({}, 0)[0] == 1
    assert module.validation_step({"is_repeat": True}, 0).tolist() == [0, 0]
