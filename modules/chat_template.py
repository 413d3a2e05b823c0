"""The chat template that came with a model: messages to the text and the tokens with which the model was trained.

Source: `apply_chat_template` and utils/chat_template_utils.py of `transformers` 5.23.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from modules.data.control_tokens import ControlEncoder
from modules.data.pretrained_tokenizer import SETTINGS_FILE, TEMPLATE_FILE, TEMPLATE_FOLDER, named_tokens, read_json
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError

Message = Mapping[str, Any]
"""A turn of a conversation, as `{"role": "user", "content": "Hello"}`."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of what a model thought before it answered; templates read the first, older ones the second."""
_REMEDY = "name a file with another template in chat_template="
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


class ChatTemplate:
    """A chat template, or several by name: `default`, and perhaps `tool_use` for messages with tools."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str], where: str):
        """Take the templates as they are.

        Args:
            sources: Their Jinja text by name.
            special_tokens: What they know as `bos_token`, `eos_token` and so on.
            where: What a message calls their place, such as `model.path=a/b`.
        """
        self._sources, self._special_tokens, self._where = sources, special_tokens, where
        self._compiled: dict[str, jinja2.Template] = {}

    @property
    def text(self) -> str:
        """The Jinja text that writes conversations without tools."""
        return self._source(False)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Return the text of a conversation, as `transformers` renders it.

        Args:
            messages: The turns, in order.
            tools: JSON schemas of the functions that the model may call.
            add_generation_prompt: Whether the text ends where the model's answer begins.
            variables: What else the template knows, such as `enable_thinking`.

        Raises:
            InputError: The template is not valid, or refuses the messages; the message has its reason.
        """
        if not messages:
            raise InputError("messages: a conversation has at least one")
        template = self._template(self._source(tools is not None))
        try:
            return template.render(
                messages=[_normalised(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._special_tokens, **variables},
            )
        except jinja2.TemplateError as error:
            raise InputError(f"{self._where}: its chat template refuses the messages ({error}); {_REMEDY}") from error
        except Exception as error:  # a template may call any method of a text or a list, wrongly, too
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{self._where}: its chat template fails on the messages ({reason}); {_REMEDY}") from error

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> list[int]:
        """Return the token ids of a conversation.

        They are those of `transformers` unless the messages hold the name of a control token. There `transformers`
        gives the token, so that a user who types `<|im_end|>` ends the turn; here it stays text. Control tokens are all
        special tokens, and, in what the model has not said itself, added tokens that the template writes, such as
        `<think>`. Delimiters that are no tokens, such as Llama 2's `[INST]`, are text whoever wrote them.

        Raises:
            InputError: As `render`.
        """
        encoder, source = tokenizer.control_encoder, self._source(tools is not None)
        said = json.dumps([list(map(dict, messages)), tools, variables, source], ensure_ascii=False, default=str)
        marker = next(chr(code) for code in _PRIVATE_USE if chr(code) not in said)
        by_others = encoder.special | self._written_tokens(source, encoder)

        def shielded(message: Message) -> dict[str, Any]:
            control = encoder.special if message.get("role") == "assistant" else by_others
            return {**encoder.shielded(message, control, marker), "role": message.get("role")}

        text = self.render(
            [shielded(message) for message in messages],
            tools=encoder.shielded(tools, by_others, marker),
            add_generation_prompt=add_generation_prompt,
            **encoder.shielded(variables, by_others, marker),
        )
        return encoder.encode(text, marker)

    def _source(self, has_tools: bool) -> str:
        if has_tools and "tool_use" in self._sources:
            return self._sources["tool_use"]
        if "default" not in self._sources:
            names = ", ".join(sorted(self._sources))
            raise InputError(f"{self._where}: none of its chat templates ({names}) is the default; {_REMEDY}")
        return self._sources["default"]

    def _template(self, source: str) -> jinja2.Template:
        if source not in self._compiled:
            try:
                self._compiled[source] = _environment().from_string(source)
            except jinja2.TemplateSyntaxError as error:
                reason = f"line {error.lineno}: {error.message}"
                raise InputError(f"{self._where}: its chat template is no valid Jinja ({reason}); {_REMEDY}") from error
        return self._compiled[source]

    def _written_tokens(self, source: str, encoder: ControlEncoder) -> frozenset[int]:
        """Return the added tokens that the template writes itself, whitespace left out, which others write as text."""
        self._template(source)  # which tells what is wrong with one that cannot be parsed
        tree = _environment().parse(source)
        literals = [node.data for node in tree.find_all(nodes.TemplateData)]
        literals += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        return frozenset(
            number
            for number, name in encoder.others.items()
            if not name.isspace() and any(name in literal for literal in literals)
        )


def find_chat_template(files: Mapping[str, bytes], where: str) -> ChatTemplate:
    """Return the chat template of a model folder: that of chat_template.jinja, or of tokenizer_config.json.

    Args:
        files: Content of the folder's files by name, as for `load_pretrained`.
        where: What a message calls the folder, such as `model.path=a/b`.

    Raises:
        InputError: It has none, or one that cannot be read.
    """
    sources = _in_files(files, where) or _in_settings(read_json(files, SETTINGS_FILE, where).get("chat_template"))
    if not sources:
        raise InputError(
            f"{where}: the model came without a chat template, so how its turns are written is not known; "
            "name a file with one in chat_template=, or use a model that was trained to chat"
        )
    return ChatTemplate(sources, named_tokens(files, where), where)


def _in_files(files: Mapping[str, bytes], where: str) -> dict[str, str]:
    found = {}
    for name in (TEMPLATE_FILE, *sorted(name for name in files if name.startswith(f"{TEMPLATE_FOLDER}/"))):
        try:
            if name in files:
                key = "default" if name == TEMPLATE_FILE else name.rpartition("/")[2].removesuffix(".jinja")
                found[key] = files[name].decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}/{name}: not UTF-8 ({error}); fetch it again") from error
    return found


def _in_settings(given: Any) -> dict[str, str]:
    """Return the templates that tokenizer_config.json holds: one, or in the older form a list of them with names."""
    if isinstance(given, str):
        return {"default": given}
    named = given if isinstance(given, list) else []
    return {item["name"]: item["template"] for item in named if isinstance(item, dict) and "template" in item}


def _normalised(message: Message) -> dict[str, Any]:
    """Return a message without empty fields, and with the model's thoughts under the names that templates read."""
    kept = {name: value for name, value in message.items() if value is not None}
    thought = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if thought is None else {"thinking": thought, **kept, "reasoning_content": thought}


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the sandbox in which templates run; they come from others, and may do no more than build a text."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": _PlainNamespace}
    return made


class _Generation(Extension):
    """The block `generation`, which marks what the model says; here its content alone matters."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """The function `dict` of templates: the class itself has more methods than they may call."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _PlainNamespace(Namespace):
    """The `namespace` of templates, in which nothing may hide that Python gives a meaning."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as its parent: a template may name a field `self`
        self, *given = args
        fields = dict(*given, **kwargs)
        for name in fields:
            _check_field(name)
        Namespace.__init__(self, fields)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_field(name)
        super().__setitem__(name, value)


def _check_field(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may have no field {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As `json.dumps`; Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
