"""A classifier's pooling, logits and loss beside torch's own, and what its parameters are."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny_models import GPT2, LLAMA, VOCAB, random_model
from torch import Tensor

from modules.classifier import class_logits, classification_loss, classification_sums, last_tokens, means, weighted
from modules.data.batches import Batch
from modules.huggingface.weights import num_parameters, parameter_shapes
from modules.inference import prepare_for_inference
from modules.initial_values import initial_values
from modules.model import GPT, decayed_parameter_names
from modules.model_config import ClassifierConfig, ModelConfig

LABELS = ("bad", "fair", "good")
WEIGHTS = (0.5, 1.0, 4.0)
LENGTHS = [3, 7, 7, 1, 12, 5, 20, 2]
END = 0


def classifier(shape: ModelConfig, attention: str, **changes: object) -> GPT:
    config = ClassifierConfig(labels=LABELS, attention=attention)  # type: ignore[arg-type]
    return random_model(shape.model_copy(update={"classifier": config, **changes}))


MODELS = {
    f"{name}, {attention}": classifier(shape, attention)
    for name, shape in {"gpt2": GPT2, "llama": LLAMA}.items()
    for attention in ("causal", "bidirectional")
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def examples() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCAB, (length,), generator=generator) for length in LENGTHS]


def batch_of(parts: list[Tensor], labels: Tensor, weights: tuple[float, ...] = WEIGHTS) -> Batch:
    row = {"input_ids": torch.cat(parts)[None], "lengths": [len(part) for part in parts], "labels": labels}
    return weighted(row, weights)


def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 1, 0, 0, 2, 0])


def test_pooling_takes_each_examples_last_token_or_the_mean_over_its_tokens() -> None:
    hidden = torch.arange(12.0).view(1, 6, 2)
    assert last_tokens(hidden, [1, 3, 2]).tolist() == [[0, 1], [6, 7], [10, 11]]
    assert means(hidden, [1, 3, 2]).tolist() == [[0, 1], [4, 5], [9, 10]]


@every_model
@torch.no_grad()
def test_logits_of_a_batch_are_those_of_each_example_alone(model: GPT) -> None:
    parts = examples()
    together = class_logits(model, torch.cat(parts)[None], LENGTHS)
    alone = torch.cat([class_logits(model, part[None], [len(part)]) for part in parts])
    assert together.dtype == torch.float32
    assert together.std() > 0.3
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_an_end_token_is_a_token_like_any_other_even_where_others_use_it_as_padding() -> None:
    model = MODELS["llama, causal"]
    text = examples()[1].clamp_min(END + 1)
    with_end = torch.cat([text, torch.tensor([END])])
    twice = torch.cat([with_end, torch.tensor([END])])
    logits = class_logits(model, torch.cat([text, with_end, twice])[None], [7, 8, 9])
    expected = torch.cat([model.score(model(ids[None])[:, -1]) for ids in (text, with_end, twice)])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    assert (logits[0] - logits[1]).abs().max() > 0.1
    assert (logits[1] - logits[2]).abs().max() > 0.1


@every_model
@pytest.mark.parametrize("sizes", [[8], [4, 4], [1, 7], [3, 1, 2, 2], [1] * 8], ids=str)
def test_the_loss_over_any_micro_batches_is_torchs_weighted_mean_over_the_whole_batch(
    model: GPT, sizes: list[int]
) -> None:
    parts = examples()
    logits = class_logits(model, torch.cat(parts)[None], LENGTHS)
    expected = F.cross_entropy(logits, labels(), weight=torch.tensor(WEIGHTS))
    whole = torch.autograd.grad(expected, list(model.parameters()))
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    batches = [
        batch_of(parts[start : start + size], labels()[start : start + size])
        for start, size in zip(starts, sizes, strict=True)
    ]
    losses = [classification_loss(model, batch) for batch in batches]
    mean = sum(loss.total for loss in losses) / sum(loss.num_targets for loss in losses)
    assert isinstance(mean, Tensor)
    assert mean.item() == pytest.approx(expected.item(), abs=1e-6)
    for found, gradient in zip(torch.autograd.grad(mean, list(model.parameters())), whole, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def test_logits_are_not_rounded_to_half_precision_by_autocast() -> None:
    model = MODELS["llama, causal"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = class_logits(model, examples()[4][None], [12])
        hidden = model(examples()[4][None])
    expected = hidden[:, -1].float() @ model.score.weight.detach().T
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_validation_sums_hold_the_loss_the_weights_and_each_class_taken_for_another() -> None:
    model, parts = MODELS["gpt2, bidirectional"], examples()
    sums = classification_sums(model, batch_of(parts, labels()))
    with torch.no_grad():
        predictions = class_logits(model, torch.cat(parts)[None], LENGTHS).argmax(1).tolist()
    assert sums.dtype == torch.float64
    loss = classification_loss(model, batch_of(parts, labels()))
    assert sums[:2].tolist() == [pytest.approx(loss.total.item()), loss.num_targets]
    confusion = sums[2:].view(3, 3)
    for label in range(3):
        for prediction in range(3):
            pairs = zip(labels().tolist(), predictions, strict=True)
            assert confusion[label, prediction] == sum(pair == (label, prediction) for pair in pairs)


@pytest.mark.parametrize("shape", [GPT2, LLAMA, LLAMA.model_copy(update={"tie_embeddings": True})])
def test_a_classifier_has_a_score_in_place_of_the_output_head(shape: ModelConfig) -> None:
    model = classifier(shape, "causal")
    names = set(dict(model.named_parameters()))
    assert {"score.weight"} == names - {name for name, _ in random_model(shape).named_parameters()}
    assert not [name for name in names if name.startswith("head.")]
    assert parameter_shapes(model.config, VOCAB)["score.weight"] == (3, 32)
    assert "score.weight" in decayed_parameter_names(model)
    body = {name: p for name, p in model.named_parameters() if name != "token_embedding.weight"}
    assert num_parameters(model.config, VOCAB) == VOCAB * 32 + sum(p.numel() for p in body.values())


def test_every_parameter_of_a_classifier_gets_a_gradient() -> None:
    for model in MODELS.values():
        model.zero_grad()
        classification_loss(model, batch_of(examples(), labels())).total.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_first_score_is_normal_with_deviation_0_02() -> None:
    config = classifier(GPT2, "causal").config
    values = initial_values("score.weight", (400, 250), 0, 10**5, 5, config, VOCAB)
    assert values.std().item() == pytest.approx(0.02, rel=0.02)
    assert values.mean().item() == pytest.approx(0, abs=3e-4)
    part = initial_values("score.weight", (400, 250), 17, 5000, 5, config, VOCAB)
    assert torch.equal(part, values[17:5000])


@pytest.mark.parametrize(
    ("names", "rule"), [(("a",), "at least 2"), (("a", "b", "a"), "label 'a' is named 2 times; labels must differ")]
)
def test_labels_are_two_or_more_and_differ(names: tuple[str, ...], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        ClassifierConfig(labels=names)


def test_the_weight_sum_is_a_number_on_the_host_that_needs_no_device() -> None:
    batch = batch_of(examples(), labels())
    assert batch["weight_sum"] == math.fsum(WEIGHTS[label] for label in labels().tolist())
    assert isinstance(batch["weight_sum"], float)


@torch.no_grad()
def test_a_classifier_prepared_for_use_has_the_logits_of_autocast() -> None:
    parts, model = examples(), classifier(LLAMA, "bidirectional")
    with torch.autocast("cpu", torch.bfloat16):
        expected = class_logits(model, torch.cat(parts)[None], LENGTHS)
    prepare_for_inference(model, torch.bfloat16)
    assert torch.equal(class_logits(model, torch.cat(parts)[None], LENGTHS), expected)
