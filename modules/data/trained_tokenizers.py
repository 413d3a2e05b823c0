"""Tokenizers that are made from text or from nothing: byte-level BPE, one token a character, one token a byte."""

from collections.abc import Callable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from modules.data.traits import byte_alphabet

UNKNOWN_CHARACTER = "\ufffd"
"""Token (U+FFFD) of `kind=char` for characters that the training text lacks; it is not a special token."""

Documents = Callable[[], Iterator[str]]


def train_bpe(documents: Documents, vocab_size: int, max_bytes: int) -> tokenizers.Tokenizer:
    """Return a byte-level BPE of at most `vocab_size` tokens, trained on the first `max_bytes` bytes of text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_first_bytes(documents(), max_bytes), trainer)
    return tokenizer


def _first_bytes(texts: Iterator[str], num_bytes: int) -> Iterator[str]:
    for text in texts:
        taken = take_bytes(text, num_bytes)
        yield taken
        num_bytes -= len(taken.encode())
        if num_bytes == 0 or len(taken) < len(text):
            return


def take_bytes(text: str, num_bytes: int) -> str:
    """Return the longest beginning of `text` that has at most `num_bytes` bytes in UTF-8."""
    if len(text) * 4 <= num_bytes:
        return text
    return text.encode()[:num_bytes].decode(errors="ignore")


def character_tokenizer(documents: Documents) -> tokenizers.Tokenizer:
    """Return a tokenizer with a token for every character of the text, and one for all others."""
    characters = {UNKNOWN_CHARACTER}
    for text in documents():
        characters.update(text)
    vocabulary = {character: number for number, character in enumerate(sorted(characters))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN_CHARACTER))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Return a tokenizer with a token for every byte."""
    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
