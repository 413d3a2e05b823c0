"""A tokenizer.json that others made: read, checked, and given special tokens."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from modules.config import TokenizerConfig
from modules.data import traits
from modules.data.encoding import spells
from modules.errors import InputError


def read_tokenizer_file(content: bytes, name: str) -> tokenizers.Tokenizer:
    """Return the tokenizer of a tokenizer.json as it is.

    Args:
        content: The file.
        name: What a message calls it, such as `tokenizer.path=a/tokenizer.json`.

    Raises:
        InputError: It is not a usable tokenizer.json.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # `tokenizers` raises a bare Exception for anything it cannot read
        raise InputError(f"{name}: not a tokenizer.json of `tokenizers` ({error})") from error
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if len(set(ids.values())) < len(ids):
        raise InputError(f"{name}: two tokens share an id; repair its vocabulary")
    return tokenizer


def encode_all_text_alike(tokenizer: tokenizers.Tokenizer) -> None:
    """Switch off what makes the tokens of a text depend on its length, on other texts or on chance."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model: Any = tokenizer.model
    if getattr(model, "dropout", None) is not None:
        model.dropout = None


def with_special_tokens(tokenizer: tokenizers.Tokenizer, names: Sequence[str]) -> tokenizers.Tokenizer:
    """Return the tokenizer with special tokens of these names; new ones come after the highest id."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    highest = max(ids.values(), default=-1)
    if highest + 1 > len(ids):
        tokenizer = _with_entries(tokenizer, [name for name in names if name not in ids], highest + 1)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def with_all_special(tokenizer: tokenizers.Tokenizer, names: Sequence[str]) -> tokenizers.Tokenizer:
    """As `with_special_tokens`; those that are special keep their flags, as `<mask>` its way to take a space along."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    new = [name for name in dict.fromkeys(names) if name not in special]
    return with_special_tokens(tokenizer, new) if new else tokenizer


def _with_entries(tokenizer: tokenizers.Tokenizer, names: Sequence[str], first: int) -> tokenizers.Tokenizer:
    """Return a tokenizer whose model has entries of these names, numbered from `first` on.

    `tokenizers` numbers an added token after the number of tokens, which another one may have if some ids are unused.
    """
    description = json.loads(tokenizer.to_str())
    description["model"]["vocab"] |= {name: number for number, name in enumerate(names, start=first)}
    return tokenizers.Tokenizer.from_str(json.dumps(description))


def is_in_text(tokenizer: tokenizers.Tokenizer, name: str) -> bool:
    """Return whether text is encoded as the token `name`, so that it cannot tell where a document begins or ends."""
    number = tokenizer.get_vocab(with_added_tokens=True)[name]
    added = tokenizer.get_added_tokens_decoder().get(number)
    is_special = added is not None and added.special
    return not is_special and spells(tokenizer, name, number)


def check_named(tokenizer: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Refuse a configuration that names a token which a given tokenizer.json lacks, or which text is encoded as.

    Raises:
        InputError: It does.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True)
    told = {
        "end_token": "where a document ends",
        "begin_token": "where a document begins",
        "mask_token": "what is masked",
    }
    for field, what in told.items():
        name = getattr(config, field)
        if name is not None and name not in ids:
            raise InputError(
                f"tokenizer.{field}={name}: {config.path} has no such token; name one that it has, or null"
            )
        if name is not None and is_in_text(tokenizer, name):
            raise InputError(
                f"tokenizer.{field}={name}: text is encoded as this token, so it cannot tell {what}; "
                "name another, or null"
            )


def begin_as_documents_do(tokenizer: tokenizers.Tokenizer, begin: str | None) -> None:
    """Set the post-processor such that a prompt begins as the documents of the training text, with `begin` or without.

    One that puts this token alone before a text stays, whatever it adds after it.
    """
    before, adds_tokens = added_by_post_processor(tokenizer)
    if begin is None:
        tokenizer.post_processor = None if adds_tokens else tokenizer.post_processor
        return
    number = tokenizer.get_vocab(with_added_tokens=True)[begin]
    if before != [number]:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], pair=[begin, "$A", "$B:1"], special_tokens=[(begin, number)]
        )


def added_by_post_processor(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], bool]:
    """Return the tokens that a post-processor puts before a text, and whether it adds any at all."""
    part = tokenizer.post_processor
    description = json.loads(part.__getstate__()) if part else None  # the state of a part is its JSON
    return traits.tokens_around(description)[0], traits.adds_tokens(description)


def usual_name(names: Sequence[str], ids: Mapping[str, int]) -> str | None:
    """Return the first of several usual names that a vocabulary has; None if it has none of them."""
    return next((name for name in names if name in ids), None)
