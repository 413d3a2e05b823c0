"""Text of tokens that arrive one by one: together it is the text of all of them, whatever they are."""

import random

import pytest
from foreign_tokenizers import CORPUS, HARD, KINDS, foreign
from tokenizers import Tokenizer as Reference
from tokenizers import decoders

from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.tokenizer import Tokenizer

OTHERS = {
    "cut_at_the_start": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 3, 0)]),
    "metaspace_first": decoders.Metaspace(prepend_scheme="first"),
    "repeats": decoders.CTC(pad_token="e", word_delimiter_token="▁", cleanup=False),
    "none": None,
}
"""Decoders, put into the `llama2` kind."""


def loaded(kind: str) -> Tokenizer:
    reference = Reference.from_str(foreign("llama2" if kind in OTHERS else kind).decode())
    if kind in OTHERS:
        reference.decoder = OTHERS[kind]
    return load_pretrained({"tokenizer.json": reference.to_str().encode()}, "model.path=m")


def rows(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Return token ids of texts, ids that no text has, and both after each other."""
    chosen = random.Random(0)
    found = []
    for number in range(count):
        text = "".join(chosen.choices("ab to be, é文😀 \n\t.", k=12)) if number % 3 else chosen.choice((*CORPUS, *HARD))
        anything = [chosen.randrange(tokenizer.vocab_size + 3) for _ in range(chosen.randrange(8))]
        found.append([*tokenizer.encode(text[:60]), *anything] if number % 2 else anything)
    return found


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_streamed_text_is_that_of_the_whole_at_every_split(kind: str) -> None:
    tokenizer = loaded(kind)
    for ids in rows(tokenizer, 60):
        for split in range(len(ids) + 1):
            stream = tokenizer.text_stream(ids[:split])
            pieces = [stream.add(number) for number in ids[split:]]
            assert "".join([*pieces, stream.finish()]) == tokenizer.decode_after(ids[:split], ids[split:])


@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_a_character_is_held_back_until_its_last_byte(kind: str) -> None:
    tokenizer = loaded(kind)
    stream, prompt = tokenizer.text_stream(tokenizer.encode("To be")), len(tokenizer.encode("To be"))
    ids = tokenizer.encode("To be 🦉🦉 or")[prompt:]
    pieces = [stream.add(number) for number in ids]
    assert "".join(pieces) == " 🦉🦉 or"
    assert len(ids) > 3
    assert all("\ufffd" not in piece for piece in pieces)


def test_the_space_after_a_prompt_is_kept() -> None:
    tokenizer = loaded("llama2")
    stream = tokenizer.text_stream(tokenizer.prompt_ids("To be"))
    assert "".join(stream.add(number) for number in tokenizer.encode("or not")) == " or not"
    fresh = tokenizer.text_stream([])
    assert "".join(fresh.add(number) for number in tokenizer.encode("or not")) == "or not"


@pytest.mark.parametrize("kind", ["llama2", "wordpiece", "unigram"])
def test_few_tokens_are_decoded_at_a_time_however_long_the_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, longest = loaded(kind), 0
    decode = tokenizer.decode

    def counted(ids: list[int], skip_special_tokens: bool = True) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids, skip_special_tokens)

    monkeypatch.setattr(tokenizer, "decode", counted)
    stream = tokenizer.text_stream(tokenizer.encode("To be" * 50))
    for text in (CORPUS[0], "a\n" * 100, " " * 200):
        for number in tokenizer.encode(text):
            stream.add(number)
    assert 0 < longest < 10
