"""Prompts to texts: each as if it were alone, with what ended it."""

from typing import Any

import pytest
import torch
from foreign_tokenizers import foreign
from tiny_models import GPT2, LLAMA, random_model

from modules.data.tokenizer import Tokenizer
from modules.generation.continuations import BeamSettings, Continuation, Continuer, numbered_prompts
from modules.generation.sampler import sample
from modules.generation.sampling import Sampling
from modules.model import GPT

TEXTS = ["To be", "or not to be, that is the question", "a", "The slings and arrows of", "To be", "outrageous"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(foreign("gpt2").decode())


@pytest.fixture(scope="module", params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> GPT:
    model = random_model(request.param, tokenizer.vocab_size)
    with torch.no_grad():  # so that a text is neither constant nor noise
        model.final_norm.weight.mul_(0.4)
    return model


def continued(
    model: GPT, tokenizer: Tokenizer, texts: list[str], beams: BeamSettings | None = None, **changes: Any
) -> list[list[Continuation]]:
    stop = changes.pop("stop", ())
    sampling = Sampling(**{"max_new_tokens": 60, "seed": 3, "context_length": 24, **changes})
    prompts = numbered_prompts([tokenizer.encode(text) for text in texts], sampling.num_sequences)
    return Continuer(model, tokenizer, sampling, stop, beams).batch(prompts)


@pytest.mark.parametrize(
    ("beams", "changes"),
    [
        (None, {}),
        (None, {"temperature": 0, "repetition_penalty": 1.3}),
        (None, {"num_sequences": 3, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1}),
        (BeamSettings(3), {"num_sequences": 2, "repetition_penalty": 1.2}),
    ],
    ids=["sampled", "greedy", "filtered", "beams"],
)
def test_prompts_of_different_lengths_have_the_texts_of_each_alone(
    model: GPT, tokenizer: Tokenizer, beams: BeamSettings | None, changes: dict[str, Any]
) -> None:
    free = continued(model, tokenizer, TEXTS, beams, **changes)
    # texts that end at different places, for all three reasons
    ends = (tokenizer.encode(free[1][0].text)[-1],)
    stop = (free[3][0].text[10:14], free[2][0].text[3:6])
    together = continued(model, tokenizer, TEXTS, beams, **changes, end_ids=ends, stop=stop)
    first = [text for number, text in enumerate(TEXTS) if text not in TEXTS[:number]]
    alone = {text: continued(model, tokenizer, [text], beams, **changes, end_ids=ends, stop=stop)[0] for text in first}
    for text, found in zip(TEXTS[:4] + TEXTS[5:], together[:4] + together[5:], strict=True):
        expected = alone[text]
        assert [(one.text, one.ended_by, one.num_tokens) for one in found] == [
            (one.text, one.ended_by, one.num_tokens) for one in expected
        ]
    assert len({one.num_tokens for found in together for one in found}) > 2


def test_equal_prompts_have_texts_of_their_own_which_are_those_of_more_sequences(
    model: GPT, tokenizer: Tokenizer
) -> None:
    found = continued(model, tokenizer, TEXTS)
    assert found[0][0].text != found[4][0].text
    assert [found[0], found[4]] == [[one] for one in continued(model, tokenizer, ["To be"], num_sequences=2)[0]]


def test_a_text_does_not_depend_on_the_prompts_around_it(model: GPT, tokenizer: Tokenizer) -> None:
    found = continued(model, tokenizer, TEXTS)
    assert continued(model, tokenizer, ["new", *reversed(TEXTS[:4])])[1:] == list(reversed(found[:4]))


def test_each_text_says_what_ended_it(model: GPT, tokenizer: Tokenizer) -> None:
    (free,) = continued(model, tokenizer, ["To be"], max_new_tokens=20)[0]
    assert (free.ended_by, free.num_tokens) == ("length", 20)
    sampling = Sampling(max_new_tokens=20, seed=3, context_length=24)
    ids = [int(step[0]) for step in sample(model, [tokenizer.encode("To be")], sampling)]
    ends = (tokenizer.vocab_size - 1, ids[4])
    (ended,) = continued(model, tokenizer, ["To be"], max_new_tokens=20, end_ids=ends)[0]
    num_tokens = ids.index(ids[4]) + 1
    assert (ended.ended_by, ended.num_tokens) == ("end token", num_tokens)
    assert ended.text == tokenizer.decode_after(tokenizer.encode("To be"), ids[:num_tokens])
    stop = free.text[4:7]
    (stopped,) = continued(model, tokenizer, ["To be"], max_new_tokens=20, stop=("never so", stop))[0]
    assert (stopped.ended_by, stopped.text) == ("stop string", free.text[: free.text.index(stop)])


def test_a_stop_string_counts_in_what_is_generated_not_in_the_prompt(model: GPT, tokenizer: Tokenizer) -> None:
    assert continued(model, tokenizer, ["To be"], stop=("To be", "To")) == continued(model, tokenizer, ["To be"])


def test_the_text_that_streams_is_that_of_the_batch(model: GPT, tokenizer: Tokenizer) -> None:
    (free,) = continued(model, tokenizer, ["To be"])[0]
    for stop in ((), (free.text[20:23],)):
        sampling = Sampling(max_new_tokens=60, seed=3, context_length=24)
        continuer = Continuer(model, tokenizer, sampling, stop, None)
        (prompt,) = numbered_prompts([tokenizer.encode("To be")], 1)
        pieces = list(continuer.stream(prompt))
        ((whole,),) = continuer.batch([prompt])
        assert "".join(pieces) == whole.text
        assert len([piece for piece in pieces if piece]) > 5
