"""The chat template that came with a model: messages to the text and the tokens with which the model was trained.

Source: `apply_chat_template` and utils/chat_template_utils.py of `transformers` 5.23.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import tokenizers
from jinja2 import nodes

from modules.data.control_tokens import ControlEncoder
from modules.data.pretrained_tokenizer import named_tokens, read_json
from modules.data.tokenizer import Tokenizer
from modules.data.tokenizer_names import SETTINGS_FILE, TEMPLATE_FILE, TEMPLATE_FOLDER
from modules.errors import InputError
from modules.template_sandbox import template_environment

Message = Mapping[str, Any]
"""A turn of a conversation, as `{"role": "user", "content": "Hello"}`."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of what a model thought before it answered; templates read the first, older ones the second."""
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


class ChatTemplate:
    """A chat template, or several by name: `default`, and perhaps `tool_use` for messages with tools."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        where: str,
        setting: str = "chat_template",
    ):
        """Take the templates as they are.

        Args:
            sources: Their Jinja text by name.
            special_tokens: What they know as `bos_token`, `eos_token` and so on.
            where: What a message calls their place, such as `model.path=a/b`.
            setting: The setting that names a file with another template.
        """
        self._sources, self._special_tokens, self._where = sources, special_tokens, where
        self._remedy = f"name a file with another template in {setting}="
        self._compiled: dict[str, jinja2.Template] = {}
        self._literals: dict[str, list[str]] = {}

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
            raise InputError(
                f"{self._where}: its chat template refuses the messages ({error}); {self._remedy}"
            ) from error
        except Exception as error:  # a template may call any method of a text or a list, wrongly, too
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{self._where}: its chat template fails on the messages ({reason}); {self._remedy}"
            ) from error

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
        writer = self.writer(tokenizer, messages, tools=tools, **variables)
        return writer.encode(writer.text(writer.messages, add_generation_prompt=add_generation_prompt))

    def writer(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> "Writer":
        """Return what writes these messages, or some of them, such that they hold no control token; see `encode`."""
        encoder, source = tokenizer.control_encoder, self._source(tools is not None)
        said = json.dumps([list(map(dict, messages)), tools, variables, source], ensure_ascii=False, default=str)
        marker = next(chr(code) for code in _PRIVATE_USE if chr(code) not in said)
        by_others = encoder.special | self._written_tokens(source, encoder)

        def shielded(message: Message) -> dict[str, Any]:
            control = encoder.special if message.get("role") == "assistant" else by_others
            return {**encoder.shielded(message, control, marker), "role": message.get("role")}

        given = {"tools": encoder.shielded(tools, by_others, marker), **encoder.shielded(variables, by_others, marker)}
        return Writer(self, encoder, [shielded(message) for message in messages], marker, given)

    def _source(self, has_tools: bool) -> str:
        if has_tools and "tool_use" in self._sources:
            return self._sources["tool_use"]
        if "default" not in self._sources:
            names = ", ".join(sorted(self._sources))
            raise InputError(f"{self._where}: none of its chat templates ({names}) is the default; {self._remedy}")
        return self._sources["default"]

    def _template(self, source: str) -> jinja2.Template:
        if source not in self._compiled:
            try:
                self._compiled[source] = template_environment().from_string(source)
            except jinja2.TemplateSyntaxError as error:
                reason = f"line {error.lineno}: {error.message}"
                raise InputError(
                    f"{self._where}: its chat template is no valid Jinja ({reason}); {self._remedy}"
                ) from error
        return self._compiled[source]

    def _written_tokens(self, source: str, encoder: ControlEncoder) -> frozenset[int]:
        """Return the added tokens that the template writes itself, whitespace left out, which others write as text."""
        if source not in self._literals:
            self._template(source)  # which tells what is wrong with one that cannot be parsed
            tree = template_environment().parse(source)
            written = [node.data for node in tree.find_all(nodes.TemplateData)]
            constants = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
            self._literals[source] = written + constants
        literals = self._literals[source]
        return frozenset(
            number
            for number, name in encoder.others.items()
            if not name.isspace() and any(name in literal for literal in literals)
        )


class Writer:
    """Writes messages whose text is shielded, all with the same marker; see `ControlEncoder`."""

    def __init__(
        self,
        template: ChatTemplate,
        encoder: ControlEncoder,
        messages: Sequence[Message],
        marker: str,
        given: Mapping[str, Any],
    ):
        self._template, self._encoder, self._given = template, encoder, given
        self.messages, self.marker = messages, marker
        """The messages, shielded, and the character that is no part of their text."""

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the text of some of its messages, with markers."""
        return self._template.render(messages, add_generation_prompt=add_generation_prompt, **self._given)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of such a text."""
        return self.encoding(text).ids

    def encoding(self, text: str) -> tokenizers.Encoding:
        """Return the tokens of such a text with their places in it."""
        return self._encoder.encoding(text, self.marker)


def find_chat_template(files: Mapping[str, bytes], where: str, setting: str = "chat_template") -> ChatTemplate:
    """Return the chat template of a model folder: that of chat_template.jinja, or of tokenizer_config.json.

    Args:
        files: Content of the folder's files by name, as for `load_pretrained`.
        where: What a message calls the folder, such as `model.path=a/b`.
        setting: The setting that names a file with another template.

    Raises:
        InputError: It has none, or one that cannot be read.
    """
    sources = _sources_in(files, where)
    if not sources:
        raise InputError(
            f"{where}: the model came without a chat template, so how its turns are written is not known; "
            f"name a file with one in {setting}=, or use a model that was trained to chat"
        )
    return ChatTemplate(sources, named_tokens(files, where), where, setting)


def has_chat_template(files: Mapping[str, bytes], where: str) -> bool:
    """Return whether a model folder has a chat template; arguments as of `find_chat_template`.

    Raises:
        InputError: It has one that cannot be read.
    """
    return bool(_sources_in(files, where))


def _sources_in(files: Mapping[str, bytes], where: str) -> dict[str, str]:
    return _in_files(files, where) or _in_settings(read_json(files, SETTINGS_FILE, where).get("chat_template"))


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
