"""What single examples get from a batch is what they get alone and from torch's own loss."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import GPT2, LLAMA, VOCAB, random_model

from modules.errors import InputError
from modules.example_scores import class_log_probabilities, example_losses
from modules.model_config import ClassifierConfig
from modules.tasks.task import Example

LENGTHS = [5, 2, 12, 5, 30, 3]
CLASSIFIER = ClassifierConfig(labels=("bad", "fair", "good"))


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for length in LENGTHS:
        is_target = [False, *(torch.rand(length - 1, generator=generator) < 0.6).tolist()]
        is_target[-1] = True
        made.append(Example(torch.randint(0, VOCAB, (length,), generator=generator).tolist(), is_target))
    return made


@pytest.mark.parametrize("shape", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_the_loss_of_an_example_in_any_batch_is_torchs_over_its_targets(shape: object) -> None:
    model, given = random_model(shape), examples()  # type: ignore[arg-type]
    together, backwards = example_losses(model, given), example_losses(model, given[::-1])[::-1]
    for example, found, again in zip(given, together, backwards, strict=True):
        ids, is_target = torch.tensor(example.ids), torch.tensor(example.is_target)
        with torch.no_grad():
            logits = model.head.logits(model(ids[None]))[0, :-1]
        expected = F.cross_entropy(logits[is_target[1:]], ids[1:][is_target[1:]], reduction="sum").item()
        assert found.nats == pytest.approx(expected, rel=1e-5)
        assert (found.num_targets, again.num_targets) == (sum(example.is_target), sum(example.is_target))
        assert again.nats == pytest.approx(found.nats, rel=1e-6)
        assert example_losses(model, [example])[0].nats == pytest.approx(found.nats, rel=1e-6)


def test_log_probabilities_of_a_batch_are_those_of_each_text_alone() -> None:
    model = random_model(LLAMA.model_copy(update={"classifier": CLASSIFIER}))
    every_ids = [example.ids for example in examples()]
    together = torch.tensor(class_log_probabilities(model, every_ids))
    alone = torch.tensor([class_log_probabilities(model, [ids])[0] for ids in every_ids])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.exp().sum(1), torch.ones(len(every_ids), dtype=together.dtype))
    assert together.std() > 0.1


def test_a_token_without_a_row_is_refused() -> None:
    with pytest.raises(InputError, match=r"token 64, and the model has rows for tokens 0 to 59; it needs"):
        example_losses(random_model(GPT2), [Example([1, 64], [False, True])])
