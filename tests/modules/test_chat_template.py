"""Chat templates: rendered and encoded as `transformers` does it, and no message writes a control token."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from foreign_tokenizers import foreign
from model_files import as_json, model_files, written
from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Reference

from modules.chat_template import ChatTemplate, find_chat_template
from modules.data.pretrained_tokenizer import load_pretrained
from modules.errors import InputError

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA3 = """\
{%- set ns = namespace(date=strftime_now('%Y') | length) %}
{{ bos_token }}
{%- for message in messages if message.content is defined %}
    {%- generation %}<|im_start|>{{ message.role }}<|im_end|>
{% if message.role == 'assistant' and message.reasoning_content is defined %}{{ message.reasoning_content | tojson }}
    {%- endif %}
{{ message.content | trim }}{{ eos_token }}{% endgeneration %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.date = ns.date + 1 %}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{{ dict(a=ns.date) }}{% endif %}
{{- nothing_such }}
{%- if add_generation_prompt %}<|im_start|>assistant<|im_end|>

{% endif %}
"""
LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set said = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set said = messages %}{% set system = false %}{% endif %}
{% for message in said %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if loop.first and system %}{% set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set text = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}
"""
USER, ANSWER = {"role": "user", "content": "Hello, naïve 文 > you\n"}, {"role": "assistant", "content": " Hi!  "}
CHATS = {
    "user": [USER],
    "system": [{"role": "system", "content": "Be <brief>."}, USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "Bye 😀"}],
    "answered": [{"role": "system", "content": ""}, USER, ANSWER],
    "thought": [USER, {"role": "assistant", "content": "Hi", "thinking": "they greet", "tool_calls": None}],
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


def chatml_files(template: Any = CHATML, **settings: Any) -> dict[str, bytes]:
    reference = Reference.from_str(foreign("gpt2").decode())
    reference.add_special_tokens(["<|im_start|>", AddedToken("<|im_end|>", rstrip=True, special=True)])
    reference.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>"), "\n\n"])
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>", "special": True},
    }
    files = model_files("gpt2", **names, chat_template=template, **settings)
    return files | {"tokenizer.json": reference.to_str().encode()}


def llama2_files() -> dict[str, bytes]:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return model_files("llama2", **names) | {"chat_template.jinja": LLAMA2.encode()}


def qwen3_files(shared_file: Callable[[str], Path]) -> dict[str, bytes]:
    folder = shared_file("tokenizers/qwen3")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


MODELS: dict[str, Callable[[Any], Mapping[str, bytes]]] = {
    "chatml": lambda _: chatml_files(),
    "llama3": lambda _: chatml_files(LLAMA3),
    "llama2": lambda _: llama2_files(),
    "qwen3": qwen3_files,
}


class Pair:
    """A model's template and tokenizer, ours and those of `transformers`."""

    def __init__(self, files: Mapping[str, bytes], folder: Path):
        import transformers

        self.template = find_chat_template(files, "model.path=m")
        self.tokenizer = load_pretrained(files, "model.path=m")
        self.auto = transformers.AutoTokenizer.from_pretrained(written(folder, files))

    def ids(self, messages: Any, **given: Any) -> list[int]:
        return self.template.encode(self.tokenizer, messages, **given)


@pytest.fixture(scope="module")
def pair(shared_file: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that gives the pair of a model, made once."""
    made: dict[str, Pair] = {}

    def of(name: str) -> Pair:
        if name not in made:
            made[name] = Pair(MODELS[name](shared_file), tmp_path_factory.mktemp(name))
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield of


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("model", MODELS)
def test_text_and_tokens_are_those_of_transformers(model: str, chat: str, asks: bool, pair: Any) -> None:
    both, messages = pair(model), CHATS[chat]
    variants: list[dict[str, Any]] = [{}, {"tools": None}, {"enable_thinking": False}, {"tools": TOOLS}]
    for given in variants:
        given = {**given, "add_generation_prompt": asks}
        assert both.template.render(messages, **given) == both.auto.apply_chat_template(
            messages, tokenize=False, **given
        )
        expected = both.auto.apply_chat_template(messages, return_dict=False, **given)
        assert both.ids(messages, **given) == expected


def control_ids(both: Pair, ids: list[int]) -> list[int]:
    added = {number for number in both.auto.added_tokens_decoder if both.auto.added_tokens_decoder[number].special}
    return [number for number in ids if number in added]


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
@pytest.mark.parametrize("model", MODELS)
def test_no_message_writes_a_control_token(model: str, role: str, pair: Any) -> None:
    both, chosen = pair(model), random.Random(0)
    names = [token.content for token in both.auto.added_tokens_decoder.values() if token.special]
    pieces = [*names, *[name[:3] for name in names], "<|im_", "start|>", " ", "\n", "hello", "\U000f0000", "é"]

    def chat(text: str) -> list[dict[str, str]]:
        start = [{"role": "user", "content": "x"}] if role == "assistant" else []
        return [
            *start,
            {"role": role, "content": text},
            *([{"role": "user", "content": "x"}] if role == "system" else []),
        ]

    harmless = control_ids(both, both.ids(chat("hello")))
    for _ in range(100):
        text = "a " + "".join(chosen.choices(pieces, k=6)) + " b"
        ids = both.ids(chat(text))
        assert control_ids(both, ids) == harmless
        assert text in both.auto.decode(ids)


@pytest.mark.parametrize("text", ["a</think>b", "<think>", "x <think>\n\n</think>"])
def test_what_the_template_writes_is_text_but_where_the_model_has_said_it(text: str, pair: Any) -> None:
    template = ChatTemplate({"default": "<think>{{ messages[-1].content }}</think>"}, {}, "model.path=m")
    tokenizer = pair("chatml").tokenizer
    think = [tokenizer.id_of("<think>"), tokenizer.id_of("</think>")]
    by_user = template.encode(tokenizer, [{"role": "user", "content": text}])
    assert [number for number in by_user if number in think] == think
    by_model = template.encode(tokenizer, [{"role": "assistant", "content": text}])
    assert [number for number in by_model if number in think] == [
        think[0], *[think["/" in part] for part in text.replace("</", "<</").split("<") if "think" in part], think[1]
    ]  # fmt: skip


def test_what_a_normalizer_makes_a_control_token_of_stays_text() -> None:
    reference = Reference.from_str(foreign("gpt2").decode())
    reference.normalizer = normalizers.NFKC()
    reference.add_special_tokens([AddedToken("<|end|>", normalized=True, special=True)])
    tokenizer = load_pretrained({"tokenizer.json": reference.to_str().encode()}, "model.path=m")
    template = ChatTemplate({"default": "{{ messages[0].content }}<|end|>"}, {}, "model.path=m")
    wide, end = "a ＜|end|＞ b", tokenizer.id_of("<|end|>")
    assert tokenizer.control_encoder.encode(wide).count(end) == 1
    assert template.encode(tokenizer, [{"role": "user", "content": wide}]).count(end) == 1
    assert template.encode(tokenizer, [{"role": "user", "content": wide}])[-1] == end


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"tokenizer_config.json": as_json({"chat_template": "one"})}, "one"),
        ({"tokenizer_config.json": as_json({"chat_template": "one"}), "chat_template.jinja": b"file"}, "file"),
        (
            {
                "tokenizer_config.json": as_json(
                    {
                        "chat_template": [
                            {"name": "tool_use", "template": "tools"},
                            {"name": "default", "template": "listed"},
                        ]
                    }
                )
            },
            "listed",
        ),
        ({"chat_template.jinja": b"file", "additional_chat_templates/tool_use.jinja": b"tools"}, "file"),
    ],
)
def test_a_template_is_found_where_transformers_finds_it(
    files: dict[str, bytes], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    files = {"tokenizer.json": foreign("gpt2"), "tokenizer_config.json": as_json({}), **files}
    settings = json.loads(files["tokenizer_config.json"]) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    files["tokenizer_config.json"] = as_json(settings)
    auto = transformers.AutoTokenizer.from_pretrained(written(tmp_path, files))
    template = find_chat_template(files, "model.path=m")
    assert template.render([USER]) == auto.apply_chat_template([USER], tokenize=False) == named
    with_tools = template.render([USER], tools=TOOLS)
    assert with_tools == auto.apply_chat_template([USER], tools=TOOLS, tokenize=False)
    assert with_tools == ("tools" if "tools" in str(files) else named)


@pytest.mark.parametrize("settings", [{}, {"chat_template": None}, {"chat_template": []}])
def test_a_model_without_a_template_is_refused_with_the_remedy(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"model\.path=m: the model came without a chat template.* chat_template="):
        find_chat_template(model_files("gpt2", **settings), "model.path=m")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "refuses the messages (Roles must alternate)"),
        ("a\n{% if %}", "is no valid Jinja (line 2: Expected an expression, got 'end of statement block')"),
        ("{{ messages[0].missing.deeper }}", "refuses the messages ('dict object' has no attribute 'missing')"),
        ("{{ messages[0].content + 1 }}", 'fails on the messages (TypeError: can only concatenate str (not "int")'),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages (access to attribute '__class__'"),
        ("{% set _ = messages.append(1) %}", "refuses the messages (access to attribute 'append'"),
        ("{% set n = namespace(__x=1) %}", "refuses the messages (a namespace may have no field '__x')"),
    ],
)
def test_an_error_of_a_template_is_told_with_its_reason(source: str, reason: str) -> None:
    template = ChatTemplate({"default": source}, {}, "model.path=m")
    with pytest.raises(InputError) as refused:
        template.render([USER])
    assert f"model.path=m: its chat template {reason}" in str(refused.value)
    assert str(refused.value).endswith("name a file with another template in chat_template=")


def test_named_templates_without_a_default_and_no_messages_are_refused() -> None:
    template = ChatTemplate({"rag": "x", "tool_use": "y"}, {}, "model.path=m")
    with pytest.raises(InputError, match=r"none of its chat templates \(rag, tool_use\) is the default"):
        template.render([USER])
    assert template.render([USER], tools=TOOLS) == "y"
    with pytest.raises(InputError, match="a conversation has at least one"):
        template.render([], tools=TOOLS)
