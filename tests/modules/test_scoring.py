"""Likelihoods of given tokens, beside the full logits of each text alone."""

import random

import pytest
import torch
from tiny_models import GPT2, LLAMA, VOCAB, random_model

from modules import scoring
from modules.errors import InputError
from modules.inference import prepare_for_inference
from modules.scoring import TargetTokens, likelihoods

MODELS = {"gpt2": random_model(GPT2), "llama": random_model(LLAMA)}
both_families = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def wanted(number: int = 12) -> list[TargetTokens]:
    """Return targets of 1 to 3 tokens after 3 to 9, the first three of which follow the same text."""
    draw = random.Random(0)
    texts = [tuple(draw.choices(range(VOCAB), k=3 + place % 7)) for place in range(number)]
    texts[1] = texts[2] = texts[0]
    return [TargetTokens(ids, tuple(draw.choices(range(VOCAB), k=1 + place % 3))) for place, ids in enumerate(texts)]


@both_families
def test_likelihoods_are_those_of_each_text_alone(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_MOST_LOGITS", 5 * VOCAB)  # the head takes five positions at a time
    found = likelihoods(model, wanted())
    for one, likelihood in zip(wanted(), found, strict=True):
        with torch.no_grad():
            logits = model.head.logits(model(torch.tensor([one.input_ids])))[0, -len(one.target_ids) :]
        targets = torch.tensor(one.target_ids)
        expected = logits.double().log_softmax(-1).gather(1, targets[:, None]).sum().item()
        assert likelihood.log_likelihood == pytest.approx(expected, abs=1e-5)
        assert likelihood.is_greedy == bool((logits.argmax(-1) == targets).all())


@both_families
def test_greedy_tokens_are_found_and_others_are_not(model: torch.nn.Module) -> None:
    text = [5, 7, 9]
    for _ in range(3):
        with torch.no_grad():
            text.append(int(model.head.logits(model(torch.tensor([text])))[0, -1].argmax()))
    other = (text[-1] + 1) % VOCAB
    seen = tuple(text[:-1])
    right, wrong = likelihoods(model, [TargetTokens(seen, tuple(text[3:])), TargetTokens(seen, (*text[3:-1], other))])
    assert (right.is_greedy, wrong.is_greedy) == (True, False)
    assert right.log_likelihood > wrong.log_likelihood


def test_the_same_input_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, computed = MODELS["gpt2"], []
    handle = model.token_embedding.register_forward_hook(lambda _, given, __: computed.append(given[0].numel()))
    likelihoods(model, [TargetTokens((1, 2, 3), (token,)) for token in range(8)])
    handle.remove()
    assert computed == [3]


def test_a_model_prepared_for_inference_gives_the_same() -> None:
    prepared = random_model(LLAMA)
    prepare_for_inference(prepared)
    pairs = zip(likelihoods(prepared, wanted()), likelihoods(MODELS["llama"], wanted()), strict=True)
    assert max(abs(one.log_likelihood - other.log_likelihood) for one, other in pairs) < 1e-5


@pytest.mark.parametrize("ids", [TargetTokens((1, VOCAB), (2,)), TargetTokens((1, 2), (VOCAB,))])
def test_a_token_that_the_model_has_no_row_for_is_refused(ids: TargetTokens) -> None:
    with pytest.raises(InputError, match=f"token {VOCAB}: the model has rows for tokens 0 to {VOCAB - 1}"):
        likelihoods(MODELS["gpt2"], [ids])
