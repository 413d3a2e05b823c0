"""SmolLM2-135M-Instruct, a real model, beside `transformers`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modules import linear
from modules.chat_template import find_chat_template
from modules.conversation import Conversation
from modules.generation.sampler import sample
from modules.generation.sampling import Sampling
from orchestrator.artifacts.models import TrainedModel, load_model
from orchestrator.cli import main
from orchestrator.commands import evaluate

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
# Charles Dickens, A Tale of Two Cities, 1859, and some code
TEXT = """It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness,
it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness,
it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing before us, we were
all going direct to Heaven, we were all going direct the other way - in short, the period was so far like the present
period, that some of its noisiest authorities insisted on its being received, for good or for evil, in the superlative
degree of comparison only. It was the year of Our Lord one thousand seven hundred and seventy-five (1775).

def year(text):
    return int("".join(letter for letter in text if letter.isdigit())) or 1859
"""


@pytest.fixture(scope="module")
def peer(smollm2: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the model and the tokenizer of `transformers`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
        yield model, transformers.AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> TrainedModel:
    return load_model(str(smollm2))


def test_a_turn_ends_with_the_token_of_the_template(peer: tuple[Any, Any], ours: TrainedModel) -> None:
    model, tokenizer = peer
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    (end,) = tokenizer.encode("<|im_end|>")
    assert rendered.endswith("<|im_start|>assistant\nHi<|im_end|>\n")
    assert model.generation_config.eos_token_id == end
    assert ours.end_ids == (end,)


def test_digits_are_tokens_of_their_own_after_any_number_of_spaces(peer: tuple[Any, Any], ours: TrainedModel) -> None:
    text = "x = [\n    12, 345]  6½"
    tokens = peer[1].tokenize(text)
    assert tokens == ["x", "Ġ=", "Ġ[", "ĊĠĠĠĠ", *"12", ",", "Ġ", *"345", "]", "ĠĠ", "6", "Â½"]
    assert ours.tokenizer.encode(text) == peer[1].encode(text)


def test_it_knows_the_capital_of_france(peer: tuple[Any, Any]) -> None:
    model, tokenizer = peer
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode(PROMPT)])).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"


def test_logits_are_those_of_transformers(
    peer: tuple[Any, Any], ours: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ where oneDNN's products are faster, since it adds in another order than the products of `peer`."""
    ids = torch.tensor([ours.tokenizer.encode(TEXT)])
    with torch.no_grad():
        expected = peer[0](ids).logits
        fastest = ours.model.head.logits(ours.model(ids))
        for name in ("_onednn_is_faster", "_onednn_is_faster_for_large_weights"):
            monkeypatch.setattr(linear, name, lambda: False)
        same_products = ours.model.head.logits(ours.model(ids))
    assert (same_products - expected).abs().max() <= 1e-4  # 7e-5 was seen: rotations here multiply and add at once
    assert (fastest - expected).abs().max() <= 1e-5 * expected.abs().max()  # 1e-4 of 40 was seen


def test_greedy_text_is_that_of_transformers(peer: tuple[Any, Any], ours: TrainedModel) -> None:
    ids = ours.tokenizer.encode(PROMPT)
    expected = peer[0].generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64, eos_token_id=None)
    settings = Sampling(max_new_tokens=64, temperature=0.0, context_length=ours.context_length)
    found = [int(step[0]) for step in sample(ours.model, [ids], settings)]
    assert found == expected[0, len(ids) :].tolist()
    assert len(found) == 64


def test_perplexity_is_that_of_transformers(
    peer: tuple[Any, Any], smollm2: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = peer
    ids = torch.tensor([*tokenizer.encode(TEXT), tokenizer.eos_token_id])
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1].double(), ids[1:])
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(evaluate, "show_evaluation", lambda path, metrics, compression: shown.append(metrics))
    words = ["data=files", "data.path=text.txt", "part=all", f"sequence_length={len(ids) - 1}"]
    assert main(["evaluate", f"model.path={smollm2}", *words]) == 0
    assert shown[0]["val/perplexity"] == pytest.approx(float(nats.exp()), rel=1e-4)


def test_a_chat_of_three_turns_is_that_of_transformers(peer: tuple[Any, Any], ours: TrainedModel) -> None:
    model, tokenizer = peer
    sampling = Sampling(max_new_tokens=40, temperature=0, end_ids=ours.end_ids)
    conversation = Conversation(ours.model, ours.tokenizer, find_chat_template(ours.files, "smollm2"), sampling)
    for text in ("Hello! What is the capital of France?", "And of Italy? 😀", "Which of the two is larger?"):
        with conversation.asked(text) as answer:
            found = "".join(answer)
        said = conversation.messages[:-1]
        given = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        expected = model.generate(**given, do_sample=False, max_new_tokens=40)[0, given["input_ids"].shape[1] :]
        assert found == tokenizer.decode(expected, skip_special_tokens=True)
        assert answer.ended_by == "end token"
