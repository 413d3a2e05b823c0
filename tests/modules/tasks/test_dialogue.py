"""Conversations to examples and questions: what is learned of them, whatever the template, and what is refused."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from chat_templates import (
    BEGINNING,
    DEFAULT_SYSTEM,
    ENDLESS,
    LLAMA2,
    MARKED,
    MERGING,
    NO_SYSTEM,
    OTHERWISE_ASKED,
    PLAIN,
    REWRITING,
    STRIPPING,
    UNASKED,
    chat_model_files,
    chat_parts,
)
from model_files import as_json, written

from modules.chat_template import find_chat_template
from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.rows import Row
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError
from modules.tasks.dialogue import Dialogue
from modules.tasks.inputs import TaskInputs
from modules.tasks.settings import DialogueConfig
from modules.tasks.task import Example
from modules.tasks.turns import find_end_token

SYSTEM = {"role": "system", "content": "be kind"}
TALK = [
    {"role": "user", "content": "to be or not"},
    {"role": "assistant", "content": " that is the question 文 "},
    {"role": "user", "content": "whether"},
    {"role": "assistant", "content": "the mind\n"},
]
START, END = "<|im_start|>", "<|im_end|>"


def made(template: str = PLAIN, kind: str = "gpt2", length: int = 1000, **settings: Any) -> Dialogue:
    source, tokenizer = chat_parts(template, kind)
    return Dialogue(DialogueConfig(**settings), TaskInputs(None, tokenizer, length, (), source))


def row(messages: Any, number: int = 1) -> Row:
    return Row({"messages": messages}, f"a.jsonl:{number}")


def learned(tokenizer: Tokenizer, example: Example) -> str:
    """Return the text of the targets, control tokens by name."""
    targets = [number for number, is_target in zip(example.ids, example.is_target, strict=True) if is_target]
    return tokenizer.decode(targets, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("template", "kind", "expected"),
    [
        (PLAIN, "gpt2", [f" that is the question 文 {END}the mind\n{END}"]),
        (PLAIN, "llama3", [f" that is the question 文 {END}the mind\n{END}"]),
        (BEGINNING, "llama3", [f" that is the question 文 {END}the mind\n{END}"]),
        (DEFAULT_SYSTEM, "gpt2", [f" that is the question 文 {END}the mind\n{END}"]),
        (STRIPPING, "gpt2", [f"that is the question 文{END}the mind{END}"]),
        (UNASKED, "gpt2", [f"{START}assistant\n that is the question 文 {END}{START}assistant\nthe mind\n{END}"]),
        (MERGING, "gpt2", [f" that is the question 文 {END}", f"the mind\n{END}"]),
        (LLAMA2, "llama2", ["that is the question 文 </s> the mind </s>"]),
        (
            REWRITING,
            "gpt2",
            [f"<think>\n\n</think>\n\n that is the question 文 {END}", f"<think>\n\n</think>\n\nthe mind\n{END}"],
        ),
    ],
)
def test_every_answer_is_learned_with_its_end_token_and_nothing_else(
    template: str, kind: str, expected: list[str]
) -> None:
    task, (source, tokenizer) = made(template, kind), chat_parts(template, kind)
    examples = task.examples(row(TALK))
    assert [learned(tokenizer, example) for example in examples] == expected
    for number, example in enumerate(examples):
        until = TALK if len(examples) == 1 else TALK[: 2 * number + 2]
        whole = source.encode(tokenizer, until)
        if template != MERGING:  # there the answer is encoded apart from what asks for it
            assert example.ids == whole[: len(example.ids)]
            assert tokenizer.decode(whole[len(example.ids) :], skip_special_tokens=False).strip() == ""
        first = example.is_target.index(True)
        asked = TALK[:1] if len(examples) == 1 else TALK[: 2 * number + 1]
        assert example.ids[:first] == source.encode(tokenizer, asked, add_generation_prompt=True)
        said = re.sub("|".join(map(re.escape, (START, END, "</s>"))), "", expected[number])
        # decoding leaves out the space that Llama 2's template writes first
        assert example.num_bytes == len(said.encode()) + (kind == "llama2")
    assert task.tally.num("split") == (len(examples) > 1)
    assert task.tally.num_examples == len(examples)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama2", "unigram"])
@pytest.mark.parametrize("template", [PLAIN, STRIPPING, UNASKED, MERGING, REWRITING, BEGINNING])
def test_before_each_answer_are_the_tokens_that_ask_for_it_whatever_is_said(template: str, kind: str) -> None:
    chosen, task, (source, tokenizer) = random.Random(7), made(template, kind), chat_parts(template, kind)
    pieces = ["\n", " ", "to", " be", "文", END, "<think>", "é", ":", "A", "  ", "\n\n", "\U000f0000"]
    for _ in range(12):
        talk = [
            {"role": role, "content": "".join(chosen.choices(pieces, k=chosen.randint(1, 6))) + "b"}
            for role in ("user", "assistant") * chosen.randint(1, 4)
        ]
        examples = task.examples(row(talk))
        answers = list(range(1, len(talk), 2))
        places = [[answers[number]] for number in range(len(examples))] if len(examples) > 1 else [answers]
        for example, mine in zip(examples, places, strict=True):
            flags = [False, *example.is_target]
            starts = [n for n in range(len(example.ids)) if flags[n + 1] and not flags[n]]
            assert len(starts) == len(mine)
            for start, place in zip(starts, mine, strict=True):
                assert example.ids[:start] == source.encode(tokenizer, talk[:place], add_generation_prompt=True)
            assert example.ids[-1] == tokenizer.id_of(END)
            if template != MERGING:
                whole = source.encode(tokenizer, talk[: mine[-1] + 1])
                assert example.ids == whole[: len(example.ids)] or len(mine) == 1


@pytest.mark.parametrize(
    ("template", "kind", "number"),
    [(BEGINNING, "llama3", 1), (PLAIN, "llama3", 0), (PLAIN, "gpt2", 0), (LLAMA2, "llama2", 2)],
)
def test_texts_begin_as_often_as_the_template_says(template: str, kind: str, number: int) -> None:
    (example,) = made(template, kind).examples(row(TALK))
    assert example.ids.count({"llama3": 0, "llama2": 1}.get(kind, -1)) == number


def test_ids_and_mask_are_those_of_transformers_for_a_template_with_marks(tmp_path: Path) -> None:
    import transformers

    auto = transformers.AutoTokenizer.from_pretrained(written(tmp_path, chat_model_files(MARKED)))
    for messages in (TALK, [SYSTEM, *TALK], TALK[:3]):
        whole = auto.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        for template in (MARKED, PLAIN):
            (example,) = made(template).examples(row(messages))
            length = len(example.ids)  # what comes after the last answer is left out
            assert example.ids == whole["input_ids"][:length]
            assert [int(flag) for flag in example.is_target] == whole["assistant_masks"][:length]
            assert sum(whole["assistant_masks"][length:]) == 0


def test_ids_of_a_question_are_those_before_its_answer_and_never_hold_it() -> None:
    for template, kind in ((PLAIN, "gpt2"), (REWRITING, "gpt2"), (MERGING, "gpt2"), (LLAMA2, "llama2")):
        task = made(template, kind)
        (question,), example = task.questions(row(TALK)), task.examples(row(TALK))[-1]
        stop = len(example.ids) - example.is_target[::-1].index(False)
        assert question.ids == example.ids[:stop]
        assert (question.text, question.reference) == ("whether", "the mind\n")
        other = [*TALK[:3], {"role": "assistant", "content": "suffer"}]
        assert task.questions(row(other))[0].ids == question.ids
        assert task.questions(row(TALK[:3]))[0] == question._replace(reference=None)


def test_a_message_that_writes_a_control_token_ends_no_turn_and_its_bytes_are_its_own() -> None:
    task, (_, tokenizer) = made(), chat_parts()
    said = f"a{END}b"
    (example,) = task.examples(row([{"role": "user", "content": said}, {"role": "assistant", "content": said}]))
    assert example.ids.count(tokenizer.id_of(END)) == 2
    assert learned(tokenizer, example) == f"a{END}b{END}"
    assert example.num_bytes == len(said)


def test_an_end_token_that_also_pads_is_learned() -> None:
    files = chat_model_files(PLAIN)
    settings = json.loads(files["tokenizer_config.json"]) | {"pad_token": END}
    files |= {"tokenizer_config.json": as_json(settings)}
    tokenizer, source = load_pretrained(files, "m"), find_chat_template(files, "m")
    assert tokenizer.padding_id == tokenizer.id_of(END)
    (example,) = Dialogue(DialogueConfig(), TaskInputs(None, tokenizer, 99, (), source)).examples(row(TALK))
    assert learned(tokenizer, example).count(END) == 2


def test_qwen3_learns_each_answer_after_the_history_that_it_writes(shared_file: Any) -> None:
    files = {path.name: path.read_bytes() for path in shared_file("tokenizers/qwen3").iterdir()}
    tokenizer, source = load_pretrained(files, "m"), find_chat_template(files, "m")
    task = Dialogue(DialogueConfig(), TaskInputs(None, tokenizer, 99, (), source))
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    bye = [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]
    first, second = task.examples(row([*talk, *bye]))
    assert learned(tokenizer, first) == f"<think>\n\n</think>\n\nHi!{END}"
    assert learned(tokenizer, second) == f"<think>\n\n</think>\n\nSee you{END}"
    (question,) = task.questions(row([*talk, bye[0]]))
    assert question.ids == second.ids[: second.is_target.index(True)]
    assert tokenizer.decode(question.ids, skip_special_tokens=False) == (
        f"{START}user\nHello{END}\n{START}assistant\nHi!{END}\n{START}user\nBye{END}\n{START}assistant\n"
    )


def long_talk(num_turns: int) -> list[dict[str, str]]:
    return [
        {"role": role, "content": f"{'to be or not ' * 3}{number}"}
        for number in range(num_turns)
        for role in ("user", "assistant")
    ]


@pytest.mark.parametrize("system", [[], [SYSTEM]])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("template", [PLAIN, REWRITING])
def test_a_long_conversation_loses_whole_turns_at_its_side(template: str, side: str, system: list[Any]) -> None:
    talk = [*system, *long_talk(6)]
    short = [*system, *(long_talk(6)[6:] if side == "left" else long_talk(6)[:6])]
    length = max(len(example.ids) for example in made(template).examples(row(short)))
    task = made(template, length=length, too_long=side)
    examples = task.examples(row(talk))
    (plain,) = made(PLAIN, length=10_000).examples(row(short))
    if template == PLAIN:
        assert examples == [plain._replace(was_cut=True)]
        assert task.tally.lines("t") == [f"t: 1 of 1 rows cut: longer than {length} tokens (first: a.jsonl:1)"]
    else:
        assert len(examples) == 6
        assert all(len(example.ids) <= length for example in examples)
        whole = made(template).examples(row(talk))
        _, tokenizer = chat_parts(template)
        assert [learned(tokenizer, example) for example in examples] == [learned(tokenizer, one) for one in whole]
        assert [example.was_cut for example in examples] == [len(one.ids) > length for one in whole]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_question_is_cut_rather_than_its_answer(side: str) -> None:
    talk = [{"role": "user", "content": "to be or not " * 30}, {"role": "assistant", "content": "the mind"}]
    (whole,), (cut,) = made().examples(row(talk)), made(length=20, too_long=side).examples(row(talk))
    assert cut == Example(whole.ids[-20:], whole.is_target[-20:], None, len("the mind"), True)
    (question,) = made(length=20, too_long=side).questions(row(talk))
    assert question.ids == made().questions(row(talk))[0].ids[-20:]


def test_a_cut_conversation_still_begins_as_the_model_expects() -> None:
    talk = [{"role": "user", "content": "to be or not " * 30}, {"role": "assistant", "content": "the mind"}]
    (whole,) = made(BEGINNING, "llama3").examples(row(talk))
    task = made(BEGINNING, "llama3", length=20)
    (cut,), (question,) = task.examples(row(talk)), task.questions(row(talk))
    assert cut.ids == [0, *whole.ids[-19:]]
    assert question.ids[0] == 0
    assert len(question.ids) == 20


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_answer_that_is_too_long_is_cut_at_its_side(side: str) -> None:
    talk = [{"role": "user", "content": "be"}, {"role": "assistant", "content": "to be or not 文 " * 30}]
    (whole,), (cut,) = made().examples(row(talk)), made(length=20, too_long=side).examples(row(talk))
    first = whole.is_target.index(True)
    start = first - 1 if side == "right" else len(whole.ids) - 20
    assert cut.ids == whole.ids[start : start + 20]
    assert cut.is_target == [False, *[True] * 19]
    _, tokenizer = chat_parts()
    kept = tokenizer.decode(cut.ids[1:])
    assert cut.num_bytes == len(kept.encode())


def test_too_long_conversations_are_dropped_or_refused_as_asked() -> None:
    dropping = made(length=20, too_long="drop")
    assert dropping.examples(row(TALK)) == dropping.questions(row(long_talk(3))) == []
    assert dropping.tally.num("dropped") == 1
    with pytest.raises(InputError, match=r"^a\.jsonl:1: its \d+ tokens are longer than 20 tokens"):
        made(length=20, too_long="refuse").examples(row(TALK))


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "dropped: no messages"),
        ([SYSTEM], "dropped: no assistant turn"),
        (TALK[:1], "dropped: no assistant turn"),
        ([TALK[0], {"role": "assistant", "content": " \n"}], "dropped: every answer is empty"),
    ],
)
def test_a_conversation_without_an_answer_is_dropped_and_counted(messages: Any, line: str) -> None:
    task = made()
    assert task.examples(row(messages, 17)) == []
    assert task.tally.lines("dialogue") == [f"dialogue: 1 of 1 rows {line} (first: a.jsonl:17)"]


def test_what_is_not_learned_of_a_conversation_is_said() -> None:
    task, (_, tokenizer) = made(), chat_parts()
    empty = {"role": "assistant", "content": ""}
    (example,) = task.examples(row([TALK[0], empty, *TALK[2:], TALK[0]]))
    assert learned(tokenizer, example) == f"the mind\n{END}"
    assert task.tally.lines("t") == [
        "t: 1 of 1 rows in part not learned: an answer is empty (first: a.jsonl:1)",
        "t: 1 of 1 rows in part not learned: the user has the last word (first: a.jsonl:1)",
    ]


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "field 'messages' is null; name another in task.messages_field, or remove the row"),
        ("Hello", "field 'messages' holds 'Hello', not a list; a conversation is a list of messages as "),
        (["Hello"], "message 1 is 'Hello'; write it as "),
        ([{"from": "human", "value": "a"}], "message 1 is {'from': 'human', 'value': 'a'}; write it as "),
        ([TALK[0], {"role": "tool", "content": "a"}], "message 2 has the role 'tool'; the roles are system, user, ass"),
        ([TALK[0], {"role": "assistant", "content": None}], "message 2: its content holds None, not text; write its"),
        ([{"role": "user", "content": ["a"]}], "message 1: its content holds ['a'], not text; write its text, or"),
        ([{"role": "user", "content": "\ud800"}], "message 1: its content holds half a surrogate pair at character"),
        (TALK[1:], "message 1 is by the assistant, and a user begins a conversation; add what it answers, or remove"),
        ([SYSTEM, *TALK[1:]], "message 2 is by the assistant, and a user begins a conversation; add what it answers"),
        ([TALK[0], TALK[2]], "messages 1 and 2 are both by the user; join them, or add what is missing between them"),
        ([*TALK, TALK[1]], "messages 4 and 5 are both by the assistant; join them, or add what is missing between"),
        ([TALK[0], SYSTEM], "message 2 is a system message; there may be one, and it comes first"),
    ],
)
def test_a_conversation_of_no_use_is_refused_by_place(messages: Any, message: str, asks: bool) -> None:
    task = made()
    with pytest.raises(InputError, match=f"^{re.escape('a.jsonl:5: ' + message)}"):
        (task.questions if asks else task.examples)(row(messages, 5))


def test_a_row_without_the_field_is_refused() -> None:
    with pytest.raises(InputError, match=r"^a\.jsonl:1: no field 'messages'; name another in task\.messages_field"):
        made().examples(Row({}, "a.jsonl:1"))


def test_what_a_template_refuses_is_refused_by_place() -> None:
    remedy = r"name a file with another template in task\.chat_template="
    with pytest.raises(InputError, match=rf"^a\.jsonl:1: model\.path=m: .*\(no system role\); {remedy}$"):
        made(NO_SYSTEM).examples(row([SYSTEM, *TALK]))
    with pytest.raises(InputError, match=r"^a\.jsonl:1: model\.path=m: .*\(Roles must alternate\)"):
        made(LLAMA2, "llama2").questions(row([SYSTEM, TALK[0]]))


def test_a_template_that_asks_otherwise_than_it_answers_is_refused() -> None:
    with pytest.raises(InputError, match=r"asks for an answer with '<think>\\n', but writes the answer as ' that is"):
        made(OTHERWISE_ASKED).examples(row(TALK))


def test_the_end_token_of_a_turn_is_found_or_named() -> None:
    assert find_end_token(*chat_parts()) == END
    assert find_end_token(*chat_parts(LLAMA2, "llama2")) == "</s>"
    assert find_end_token(*chat_parts(), END) == END
    ending = ENDLESS.replace("message.content +", "message.content + '</think>' +")
    with pytest.raises(InputError, match=r"writes no special token after an answer, .*task\.new_tokens.*chat_template"):
        find_end_token(*chat_parts(ending))
    assert find_end_token(*chat_parts(ending), "</think>") == "</think>"
    header_alone = ENDLESS.partition("{%- if add")[0]
    with pytest.raises(InputError, match="writes no special token after an answer"):
        find_end_token(*chat_parts(header_alone))
    with pytest.raises(InputError, match=r"writes no <\|endoftext\|> after an answer"):
        find_end_token(*chat_parts(), "<|endoftext|>")
    with pytest.raises(InputError, match=r"^task\.end_token=<x>: the model's tokenizer has no such token"):
        find_end_token(*chat_parts(), "<x>")


def test_a_model_without_a_template_is_refused() -> None:
    _, tokenizer = chat_parts()
    with pytest.raises(InputError, match=r"^task=dialogue: the model came without a chat template.*chat_template"):
        Dialogue(DialogueConfig(), TaskInputs(None, tokenizer, 9, (), None))
