"""Chat templates of several kinds, and models that come with them."""

from typing import Any

from foreign_tokenizers import foreign
from model_files import model_files
from tokenizers import AddedToken
from tokenizers import Tokenizer as Reference

from modules.chat_template import ChatTemplate, find_chat_template
from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.tokenizer import Tokenizer

PLAIN = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
MARKED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- else %}{{ message.content + '<|im_end|>' + '\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
"""As PLAIN, with marks around what the assistant says and the token that ends it."""
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nHelp.<|im_end|>\\n' }}{% endif %}" + PLAIN
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
STRIPPING = PLAIN.replace("message.content", "(message.content | trim)")
UNASKED = PLAIN.partition("{%- if add")[0]
"""Writes no prompt for an answer."""
ENDLESS = PLAIN.replace("<|im_end|>' + '\\n", "\\n")
"""Writes no token after a turn."""
MERGING = """\
{%- for message in messages %}
    {{- ('Q: ' if message.role == 'user' else 'A: ') + message.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'A: ' }}{% endif %}
"""
"""Its prompt ends with a space, which becomes one token with the word after it."""
REWRITING = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
"""Writes thoughts before the last answer alone, as Qwen 3's."""
OTHERWISE_ASKED = PLAIN.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")
LLAMA2 = """\
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}
{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}
{% endfor %}
"""
BEGINNING = "{{ bos_token }}" + PLAIN
NAMES = {
    "gpt2": {"eos_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|begin|>", "eos_token": "<|end_of_text|>"},
    "unigram": {"eos_token": "</s>", "unk_token": "<unk>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}
CONTROL = ("<|im_start|>", "<|im_end|>")


def chat_model_files(template: str | None = PLAIN, kind: str = "gpt2", control: Any = CONTROL) -> dict[str, bytes]:
    """Return the files of a model with a tokenizer of a kind, control tokens and a template, if there is one."""
    reference = Reference.from_str(foreign(kind).decode())
    if control:
        reference.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
        reference.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    files = model_files(kind, **NAMES[kind]) | {"tokenizer.json": reference.to_str().encode()}
    return files if template is None else files | {"chat_template.jinja": template.encode()}


def chat_parts(template: str = PLAIN, kind: str = "gpt2") -> tuple[ChatTemplate, Tokenizer]:
    """Return the template and the tokenizer of such a model."""
    files = chat_model_files(template, kind)
    return find_chat_template(files, "model.path=m", "task.chat_template"), load_pretrained(files, "model.path=m")
