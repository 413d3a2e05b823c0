"""The files of a base model that becomes a chat model: its template, its new tokens, and where its answers end."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modules.chat_template import ChatTemplate, find_chat_template, has_chat_template
from modules.data.pretrained_tokenizer import load_pretrained, named_tokens, read_json
from modules.data.tokenizer import CHAT_ROLES, Tokenizer
from modules.data.tokenizer_file import read_tokenizer_file, with_all_special
from modules.data.tokenizer_names import SETTINGS_FILE, TEMPLATE_FILE, TOKENIZER_FILE
from modules.tasks.settings import DialogueConfig
from modules.tasks.turns import find_end_token

SETTING = "task.chat_template"
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_OWN_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""
"""Writes turns with CHAT_ROLES, which every tokenizer made here has; Phi-3's form."""
_FLAGS = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}


def chat_files(
    files: Mapping[str, bytes], settings: DialogueConfig, template_text: str | None, where: str = "model.path"
) -> dict[str, bytes]:
    """Return the files of a model folder such that we and `transformers` read it as a model that chats.

    New tokens have the ids after the highest one. The token that ends a turn of the assistant is added to those at
    which the model stops. A template that does not write the token with which the model's texts begin gets it.

    Args:
        files: The folder's files of READ_FILES by name.
        settings: New tokens, and the token that ends a turn, if it is named.
        template_text: The chat template; None keeps the one that came with the model, or takes ours if there is none
            and the tokenizer has CHAT_ROLES.
        where: What a message calls the folder.

    Raises:
        InputError: There is no template, none that shows where a turn ends, or a file that cannot be read.
    """
    made = _with_tokens(files, settings.new_tokens, where) if settings.new_tokens else dict(files)
    tokenizer = load_pretrained(made, where)
    if template_text is None and not has_chat_template(made, where) and _knows_roles(tokenizer):
        template_text = _OWN_TEMPLATE
    if template_text is not None:
        made = _with_template(made, template_text, where)
        if not _begins(find_chat_template(made, SETTING, SETTING), tokenizer):
            made = _with_template(made, _beginning(made, tokenizer, where) + template_text, where)
    template = find_chat_template(made, where if template_text is None else SETTING, SETTING)
    end_id = tokenizer.id_of(find_end_token(template, tokenizer, settings.end_token))
    ends = list(dict.fromkeys([*tokenizer.end_ids, end_id]))
    return made | {
        name: _json(read_json(made, name, where) | {"eos_token_id": ends if len(ends) > 1 else ends[0]})
        for name in (_CONFIG, _GENERATION)
        if name in made
    }


def _with_tokens(files: Mapping[str, bytes], names: Sequence[str], where: str) -> dict[str, bytes]:
    """Return the files with control tokens of these names; `transformers` reads them from all that change."""
    before = read_tokenizer_file(files.get(TOKENIZER_FILE, b""), f"{where}/{TOKENIZER_FILE}")
    made = with_all_special(before, names)
    ids = made.get_vocab(with_added_tokens=True)
    changed = {TOKENIZER_FILE: made.to_str(pretty=True).encode()}
    settings, config = read_json(files, SETTINGS_FILE, where), read_json(files, _CONFIG, where)
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] |= {str(ids[name]): {"content": name, **_FLAGS} for name in names}
        changed[SETTINGS_FILE] = _json(settings)
    if isinstance(config.get("vocab_size"), int):
        changed[_CONFIG] = _json(config | {"vocab_size": max(config["vocab_size"], *(ids[name] + 1 for name in names))})
    return {**files, **changed}


def _knows_roles(tokenizer: Tokenizer) -> bool:
    return all(tokenizer.id_of(name) is not None for name in CHAT_ROLES)


def _with_template(files: Mapping[str, bytes], text: str, where: str) -> dict[str, bytes]:
    settings = read_json(files, SETTINGS_FILE, where) | {"chat_template": text}
    return {**files, TEMPLATE_FILE: text.encode(), SETTINGS_FILE: _json(settings)}


def _begins(template: ChatTemplate, tokenizer: Tokenizer) -> bool:
    """Return whether a conversation begins as the model's texts do."""
    begin, ids = tokenizer.begin_ids, template.encode(tokenizer, [{"role": "user", "content": "Hello"}])
    return tuple(ids[: len(begin)]) == begin


def _beginning(files: Mapping[str, bytes], tokenizer: Tokenizer, where: str) -> str:
    """Return what writes the tokens with which the model's texts begin, in a template."""
    names = "".join(str(tokenizer.token_of(number)) for number in tokenizer.begin_ids)
    return (
        "{{ bos_token }}" if named_tokens(files, where).get("bos_token") == names else f"{{{{ {json.dumps(names)} }}}}"
    )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
