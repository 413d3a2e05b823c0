"""The builder of sequences: begin and end tokens, borders, cuts that keep labels, and bytes of text."""

from itertools import pairwise
from typing import Any

import pytest
from task_tokenizers import lossy_tokenizer, task_tokenizer

from modules.errors import InputError
from modules.tasks.sequences import Part, SequenceBuilder
from modules.tasks.tally import Tally
from modules.tasks.task import Example

KINDS = ["gpt2", "llama3", "llama2", "unigram"]
TEXT, ANSWER = "To be, or not to be: that is the question. ", "mind 文 é"


def builder(kind: str = "gpt2", length: int = 100, too_long: Any = "right", **names: str) -> SequenceBuilder:
    return SequenceBuilder(task_tokenizer(kind, **names), length, too_long, Tally())


def built(made: SequenceBuilder, *parts: Part) -> Example:
    example = made.build(parts, "a.jsonl:1")
    assert example is not None
    return example


def targets(example: Example) -> list[int]:
    return [number for number, is_target in zip(example.ids, example.is_target, strict=True) if is_target]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_begins_once_where_the_tokenizer_begins_and_ends_with_a_target(kind: str) -> None:
    made = builder(kind)
    tokenizer, example = made.tokenizer, built(made, Part(TEXT), Part(ANSWER, is_target=True))
    begin = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    assert (begin != []) == (kind in ("llama2", "llama3"))
    answer = [*tokenizer.encode(ANSWER), tokenizer.end_of_text_id]
    assert example.ids == [*begin, *tokenizer.encode(TEXT), *answer]
    assert targets(example) == answer
    assert example.num_bytes == len(ANSWER.encode())
    assert not example.was_cut


def test_no_token_reaches_over_the_border_of_two_parts() -> None:
    made = builder()
    whole, apart = made.tokenizer.encode("mind"), built(made, Part("mi"), Part("nd", is_target=True))
    assert len(whole) < len(apart.ids) - 1
    assert apart.ids[:-1] == [*made.tokenizer.encode("mi"), *made.tokenizer.encode("nd")]


def test_an_end_token_that_also_pads_is_learned() -> None:
    made = builder(pad_token="<|endoftext|>")
    assert made.tokenizer.padding_id == made.tokenizer.end_of_text_id
    assert targets(built(made, Part("a"), Part("b", is_target=True)))[-1] == made.tokenizer.padding_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_prompt_is_cut_at_its_side_rather_than_its_answer(side: str, kind: str) -> None:
    made = builder(kind, length=20, too_long=side)
    before, after = Part("q ", is_fixed=True), Part("\na", is_fixed=True)
    example = built(made, before, Part(TEXT * 3), after, Part("be", is_target=True))
    encode = made.tokenizer.encode
    answer = [*encode("be"), made.tokenizer.end_of_text_id]
    room = 20 - len(made.begin_ids) - len(encode("q ")) - len(encode("\na")) - len(answer)
    source = encode(TEXT * 3)[:room] if side == "right" else encode(TEXT * 3)[-room:]
    assert example.ids == [*made.begin_ids, *encode("q "), *source, *encode("\na"), *answer]
    assert targets(example) == answer
    assert (example.was_cut, example.num_bytes) == (True, 2)
    assert made.tally.lines("t") == ["t: 1 of 0 rows cut: longer than 20 tokens (first: a.jsonl:1)"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_an_answer_that_is_too_long_alone_is_cut_and_its_bytes_are_those_that_are_left(side: str, kind: str) -> None:
    made = builder(kind, length=10, too_long=side)
    example = built(made, Part("w", is_fixed=True), Part("whether"), Part(TEXT, is_target=True))
    kept = targets(example)
    assert len(example.ids) == 10
    assert (example.ids[-1] == made.tokenizer.end_of_text_id) == (side == "left")
    text = TEXT[len(TEXT) - example.num_bytes :] if side == "left" else TEXT[: example.num_bytes]
    assert 0 < example.num_bytes < len(TEXT)
    assert made.tokenizer.decode(kept).strip() == text.strip()


def test_of_two_texts_the_longer_one_is_cut() -> None:
    made = builder(length=20)
    example = built(made, Part(TEXT * 9), Part("|", is_fixed=True), Part("be"))
    encode = made.tokenizer.encode
    assert example.ids == [*encode(TEXT * 9)[: 19 - len(encode("be"))], *encode("|"), *encode("be")]


def test_the_first_token_of_a_sequence_is_no_target_and_its_bytes_do_not_count() -> None:
    example = built(builder(), Part("xyz", is_target=True))
    assert example.is_target[0] is False
    assert example.num_bytes == 2


def test_a_sequence_that_is_too_long_is_dropped_and_counted_or_refused_as_asked() -> None:
    dropping = builder(length=9, too_long="drop")
    assert dropping.build([Part(TEXT)], "a.jsonl:3") is None
    assert dropping.tally.num("dropped") == 1
    with pytest.raises(InputError, match=r"^a\.jsonl:1: its \d+ tokens are longer than 9 tokens; .*task\.too_long"):
        built(builder(length=9, too_long="refuse"), Part(TEXT))


def test_a_prompt_without_room_for_a_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"^a\.jsonl:1: what is put around .* leaves no room"):
        built(builder(length=5), Part(TEXT, is_fixed=True), Part("a"))


def test_an_example_whose_targets_are_cut_is_dropped_and_counted() -> None:
    made = builder(length=5)
    fixed = Part("".join("wxyzq"), is_fixed=True)
    example = built(made, fixed, Part("be", is_target=True))
    assert made.with_targets(example, "a.jsonl:1") == []
    assert "dropped: nothing to predict is left within 5 tokens (first: a.jsonl:1)" in made.tally.lines("t")[-1]


@pytest.mark.parametrize("length", [2, 7, 50, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_predict_every_token_but_the_first_once_and_count_every_byte_once(kind: str, length: int) -> None:
    made, text = builder(kind, length=length), (TEXT + ANSWER) * 4
    windows = made.windows(text, "a.jsonl:1")
    tokenizer = made.tokenizer
    whole = [*made.begin_ids, *tokenizer.encode(text), tokenizer.end_of_text_id]
    assert [number for window in windows for number in targets(window)] == whole[1:]
    assert all(2 <= len(window.ids) <= length for window in windows)
    assert all(later.ids[0] == before.ids[-1] for before, later in pairwise(windows))
    assert made.tally.num("split") == (len(windows) > 1)
    first = {"gpt2": len("To"), "unigram": len("")}.get(kind, 0)  # the first token is predicted from nothing
    assert [made.tokenizer.token_of(whole[0])] == {"gpt2": ["To"], "unigram": ["▁"]}.get(kind, [tokenizer.begin_token])
    assert sum(window.num_bytes for window in windows) == len(text.encode()) - first


def test_text_that_a_tokenizer_would_lose_is_refused() -> None:
    made = SequenceBuilder(lossy_tokenizer(), 9, "right", Tally())
    assert built(made, Part("ab")).ids == [0, 1]
    for text in ("abé", "aéb", "éab"):
        with pytest.raises(InputError, match=r"a\.jsonl:1: the model's tokenizer .*'é'"):
            built(made, Part(text))


def test_text_without_tokens_of_its_own_is_counted() -> None:
    made = builder("unigram")
    built(made, Part("be ☃"))
    assert made.tally.lines("t", made.tokenizer.unknown_token) == [
        "t: 1 of 4 characters have no token and became <unk>: '☃'"
    ]


def test_tallies_add_up_and_keep_the_first_place() -> None:
    first, second = Tally(num_rows=2), Tally(num_rows=1198)
    for tally, place in ((first, "a:1"), (first, "a:1"), (second, "b:4"), (second, "b:5")):
        tally.note("dropped", "no text", place)
    second.note("cut", "longer than 4 tokens", "b:6")
    first.add(second)
    assert first.lines("test") == [
        "test: 3 of 1,200 rows dropped: no text (first: a:1)",
        "test: 1 of 1,200 rows cut: longer than 4 tokens (first: b:6)",
    ]
