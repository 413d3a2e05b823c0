"""What a tokenizer.json says about how its tokens stand for text.

This module imports only numpy and the standard library, because every tokenising process pays for the imports again.
"""

import re
from typing import Any

import numpy as np

Description = dict[str, Any]
"""The content of a tokenizer.json."""


def byte_alphabet() -> list[str]:
    """Return the character that byte-level vocabularies write for each byte.

    Source: `bytes_to_unicode` in openai/gpt-2, src/encoder.py.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_BYTE_OF = {character: byte for byte, character in enumerate(byte_alphabet())}
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


def cuts_like_gpt2(description: Description) -> bool:
    """Return whether text is split into words by GPT-2's pattern and nothing else changes it."""
    cut = description["pre_tokenizer"] or {}
    return (
        description["normalizer"] is None
        and cut.get("type") == "ByteLevel"
        and cut["use_regex"]
        and not cut["add_prefix_space"]
        and _has_only_special_tokens(description)
    )


def is_per_character(description: Description) -> bool:
    """Return whether every character is one token, as in `kind=char`."""
    model = description["model"]
    return (
        description["normalizer"] is None
        and description["pre_tokenizer"] is None
        and model["type"] == "BPE"
        and not model["merges"]
        and not model.get("byte_fallback")
        and not model.get("fuse_unk")
        and not model["continuing_subword_prefix"]
        and not model["end_of_word_suffix"]
        and model["unk_token"] in model["vocab"]
        and _has_only_special_tokens(description)
    )


def joins_at_words(description: Description) -> bool:
    """Return whether pieces that were cut between words have the tokens of the whole text."""
    per_byte = keeps_bytes(description) and not description["model"]["merges"]
    return is_per_character(description) or per_byte or (cuts_like_gpt2(description) and keeps_bytes(description))


def keeps_bytes(description: Description) -> bool:
    """Return whether each token stands for the bytes that it spells, all of the text is encoded, and nothing else."""
    model, parts = description["model"], _parts(description["pre_tokenizer"], "pretokenizers")
    return (
        description["normalizer"] is None
        and any(part["type"] == "ByteLevel" for part in parts)
        and all(_only_splits(part) for part in parts)
        and model["type"] == "BPE"
        and not model["continuing_subword_prefix"]
        and not model["end_of_word_suffix"]
        and set(byte_alphabet()) <= model["vocab"].keys()
        and _has_only_special_tokens(description)
    )


def loses_nothing(description: Description) -> bool:
    """Return whether every character becomes a token of its own value; False where that cannot be told."""
    if keeps_bytes(description):
        return True
    model = description["model"]
    parts = _parts(description["pre_tokenizer"], "pretokenizers")
    return (
        all(_only_marks_spaces(part) for part in _parts(description["normalizer"], "normalizers"))
        and all(part["type"] == "Metaspace" or _only_splits(part) for part in parts)
        and model["type"] == "BPE"
        and bool(model.get("byte_fallback"))
        and {f"<0x{byte:02X}>" for byte in range(256)} <= model["vocab"].keys()
    )


def unknown_id(description: Description) -> int | None:
    """Return the id of the token that stands for what has no other, or None."""
    model = description["model"]
    if model["type"] == "Unigram":
        return model["unk_id"]
    return model["vocab"].get(model["unk_token"])


def adds_tokens(post_processor: Description | None) -> bool:
    """Return whether a post-processor adds tokens such as `<s>` to a text."""
    return any(part["type"] != "ByteLevel" for part in _parts(post_processor, "processors"))


def tokens_around(post_processor: Description | None) -> tuple[list[int], list[int]]:
    """Return the tokens that a post-processor puts before and after a text; of a sequence, one part at most does."""
    added = [_added_by(part) for part in _parts(post_processor, "processors")]
    return next((around for around in added if any(around)), ([], []))


def _added_by(part: Description) -> tuple[list[int], list[int]]:
    if part["type"] in ("BertProcessing", "RobertaProcessing"):
        return [part["cls"][1]], [part["sep"][1]]
    if part["type"] != "TemplateProcessing":
        return [], []
    around: tuple[list[int], list[int]] = [], []
    after_text = False
    for piece in part["single"]:
        if "Sequence" in piece:
            after_text = True
        else:
            around[after_text].extend(part["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return around


def writes_bytes(decoder: Description | None) -> bool:
    """Return whether text is the bytes of the tokens, as `token_bytes` gives them, and nothing else."""
    return [part["type"] for part in _parts(decoder, "decoders")] == ["ByteLevel"]


def joins_byte_tokens(decoder: Description | None) -> bool:
    """Return whether tokens such as `<0x0A>` that follow each other are written as one text."""
    return any(part["type"] == "ByteFallback" for part in _parts(decoder, "decoders"))


def is_byte_token(token: str) -> bool:
    """Return whether a token such as `<0x0A>` stands for a byte."""
    return _BYTE_TOKEN.fullmatch(token) is not None


def in_byte_alphabet(text: str) -> str:
    """Return a text as byte-level vocabularies write it."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in text.encode())


def token_bytes(token: str) -> bytes:
    """Return the bytes that a token of a byte-level vocabulary stands for: an added one is spelt as it is."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def spelt_bytes(description: Description, vocab_size: int) -> np.ndarray:
    """Return the bytes that each token spells, int32 [vocab_size]; 0 for special tokens and unused ids.

    The text may hold other bytes: what is right for every text is for `keeps_bytes` to say.
    """
    sizes = np.zeros(vocab_size, dtype=np.int32)
    vocab = description["model"]["vocab"]
    numbered = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
    parts = [*_parts(description["pre_tokenizer"], "pretokenizers"), *_parts(description["decoder"], "decoders")]
    byte_level = any(part["type"] == "ByteLevel" for part in parts)
    for token, number in numbered:
        sizes[number] = len(token) if byte_level else len(token.replace("\u2581", " ").encode())
    for token in description["added_tokens"]:
        sizes[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    return sizes


def _only_splits(part: Description) -> bool:
    if part["type"] == "ByteLevel":
        return not part["add_prefix_space"]
    return part["type"] == "Digits" or (part["type"] == "Split" and part["behavior"] != "Removed")


def _only_marks_spaces(part: Description) -> bool:
    return part["type"] == "Prepend" or (part["type"] == "Replace" and part["pattern"] == {"String": " "})


def _parts(component: Description | None, name: str) -> list[Description]:
    """Return a component's parts: those of a sequence, or the component itself."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [inner for part in component[name] for inner in _parts(part, name)]


def _has_only_special_tokens(description: Description) -> bool:
    return all(token["special"] for token in description["added_tokens"])
