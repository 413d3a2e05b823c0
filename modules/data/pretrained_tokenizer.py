"""The tokenizer that came with a model of others, with its own tokens and as few of ours as possible."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from modules.data.tokenizer import END_OF_TEXT, MASK, MASK_TOKENS, PADDING, PADDING_TOKENS, Tokenizer
from modules.data.tokenizer_file import (
    encode_all_text_alike,
    is_in_text,
    read_tokenizer_file,
    usual_name,
    with_all_special,
)
from modules.data.tokenizer_names import KEPT_FILES, MAP_FILE, SETTINGS_FILE, TEMPLATE_FOLDER, TOKENIZER_FILE
from modules.errors import InputError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_pretrained(files: Mapping[str, bytes], where: str, *, with_mask: bool = False) -> Tokenizer:
    """Return the tokenizer of a model folder; the ids of its tokens are untouched.

    Its end token is the first of those at which the model stops that text is never encoded as: a model may stop at a
    line break, too, which ends no document.

    Args:
        files: Content of the folder's files of READ_FILES by name; the others are not looked at.
        where: What a message calls the folder, such as `model.path=a/b`.
        with_mask: Whether `<|mask|>` is added, after the highest id, to one that has no mask token.

    Raises:
        InputError: There is no tokenizer.json, or a file cannot be used.
    """
    if TOKENIZER_FILE not in files:
        raise InputError(f"{where}: no tokenizer.json beside the weights; save the tokenizer there")
    tokenizer = read_tokenizer_file(files[TOKENIZER_FILE], f"{where}/{TOKENIZER_FILE}")
    named, extra = named_tokens(files, where), _extra_tokens(files, where)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    mask = usual_name((named.get("mask_token", MASK), *MASK_TOKENS), ids)
    kept = {name: content for name, content in files.items() if _is_kept(name)}
    if mask is None and with_mask:
        mask, tokenizer = MASK, with_all_special(tokenizer, [MASK])
        ids = tokenizer.get_vocab(with_added_tokens=True)
        kept |= _files_with_mask(kept, tokenizer, ids[MASK], where)
    encode_all_text_alike(tokenizer)
    special = [*named.values(), *extra, *([mask] if mask is not None and with_mask else [])]
    tokenizer = with_all_special(tokenizer, [name for name in special if name in ids])
    ends, names = _end_ids(files, where, ids, named), {number: name for name, number in ids.items()}
    enders = [names[number] for number in ends if not is_in_text(tokenizer, names[number])]
    return Tokenizer(
        with_all_special(tokenizer, enders).to_str(),
        enders[0] if enders else None,
        mask_token=mask,
        padding_token=usual_name((named.get("pad_token", PADDING), *PADDING_TOKENS), ids),
        end_ids=ends,
        files=kept,
    )


def named_tokens(files: Mapping[str, bytes], where: str) -> dict[str, str]:
    """Return the names of the special tokens that have a role, by role as in NAMED, as `transformers` reads them.

    Raises:
        InputError: A file is not readable as JSON.
    """
    settings = _settings(files, where)
    return {role: name for role in NAMED if (name := _name(settings.get(role))) is not None}


def _extra_tokens(files: Mapping[str, bytes], where: str) -> list[str]:
    settings = _settings(files, where)
    lists = [settings.get(key) for key in ("additional_special_tokens", "extra_special_tokens")]
    found = [_name(token) for tokens in lists for token in (tokens if isinstance(tokens, list) else [])]
    return [name for name in found if name]


def _settings(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Return the content of tokenizer_config.json, into which the older special_tokens_map.json is read."""
    settings = read_json(files, SETTINGS_FILE, where)
    return settings if "added_tokens_decoder" in settings else settings | read_json(files, MAP_FILE, where)


def _name(token: Any) -> str | None:
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None


def _end_ids(files: Mapping[str, bytes], where: str, ids: Mapping[str, int], named: Mapping[str, str]) -> list[int]:
    """Return the tokens at which the model stops, in the order of the files, as far as it has rows for them."""
    config = read_json(files, "config.json", where)
    num_rows = config.get("vocab_size")
    known = {number for number in ids.values() if not isinstance(num_rows, int) or number < num_rows}
    given = [*_numbers(config), *_numbers(read_json(files, "generation_config.json", where))]
    usual = [ids[name] for name in (named.get("eos_token", END_OF_TEXT), END_OF_TEXT) if name in ids][:1]
    return [n for n in dict.fromkeys(given) if n in known] or [n for n in usual if n in known]


def _numbers(config: Mapping[str, Any]) -> Iterator[int]:
    given = config.get("eos_token_id")
    for number in given if isinstance(given, list) else [given]:
        if isinstance(number, int) and not isinstance(number, bool):
            yield number


def _files_with_mask(
    files: Mapping[str, bytes], tokenizer: tokenizers.Tokenizer, mask_id: int, where: str
) -> dict[str, bytes]:
    """Return the files that change with an added mask token; `transformers` reads it from all of them."""
    settings = read_json(files, SETTINGS_FILE, where)
    flags = {"content": MASK, **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)}
    settings["mask_token"] = MASK
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"][str(mask_id)] = {**flags, "special": True}
    changed = {TOKENIZER_FILE: tokenizer.to_str(pretty=True).encode(), SETTINGS_FILE: _json(settings)}
    if MAP_FILE in files:
        changed[MAP_FILE] = _json(read_json(files, MAP_FILE, where) | {"mask_token": flags})
    return changed


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _is_kept(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return name in KEPT_FILES or (folder == TEMPLATE_FOLDER and file.endswith(".jinja"))


def read_json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    """Return the object that a file holds; empty if there is no such file.

    Raises:
        InputError: It holds none.
    """
    if name not in files:
        return {}
    try:
        content = json.loads(files[name])
    except ValueError as error:
        raise InputError(f"{where}/{name}: not readable as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}/{name}: holds no JSON object; fetch it again")
    return content
