"""Text to token numbers and back: four kinds of tokenizer in one file format, that of the `tokenizers` library."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from modules.config import TokenizerConfig
from modules.data.encoding import load_encoder
from modules.errors import InputError

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
PADDING = "<|pad|>"
CHAT_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SPECIAL_TOKENS = (END_OF_TEXT, MASK, PADDING, *CHAT_ROLES)
UNKNOWN_CHARACTER = "\ufffd"
"""What `kind=char` reads for a character that the training text lacks: an ordinary token, U+FFFD."""

Documents = Callable[[], Iterator[str]]


class Tokenizer:
    """Text to token numbers and back.

    Every tokenizer has SPECIAL_TOKENS, and text never becomes one of them: a document that spells `<|endoftext|>` is
    encoded letter by letter. They get into a sequence by their numbers alone.
    """

    def __init__(self, serialised: str):
        """Takes the text of a tokenizer.json that `build_tokenizer` or `save` made."""
        self._encoder = load_encoder(serialised)
        ids = self._encoder.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        """Rows that an embedding needs."""
        self.special_ids = tuple(ids[token] for token in SPECIAL_TOKENS)
        self.end_of_text_id, self.mask_id, self.padding_id = self.special_ids[:3]

    def encode(self, text: str) -> list[int]:
        """Token numbers of `text`, none of them special."""
        return self._encoder.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of each text."""
        return [encoding.ids for encoding in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self._encoder.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_of(self, token: str) -> int:
        """Number of a token such as `<|user|>`."""
        return self._encoder.get_vocab(with_added_tokens=True)[token]

    def token_num_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token stands for, int32 [vocab_size]; 0 for special tokens and unused numbers."""
        byte_level = "ByteLevel" in json.dumps(json.loads(self.serialised())["decoder"])
        sizes = np.zeros(self.vocab_size, dtype=np.int32)
        for token, number in self._encoder.get_vocab(with_added_tokens=False).items():
            sizes[number] = len(token) if byte_level else len(token.replace("\u2581", " ").encode())
        for number, token in self._encoder.get_added_tokens_decoder().items():
            sizes[number] = 0 if token.special else len(token.content.encode())
        return sizes

    def serialised(self) -> str:
        """The text of its tokenizer.json."""
        return self._encoder.to_str(pretty=True)

    def save(self, path: Path) -> None:
        """Writes a tokenizer.json, which `transformers.PreTrainedTokenizerFast` opens too."""
        path.write_text(self.serialised(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads what `save` wrote."""
        return cls(path.read_text(encoding="utf-8"))


def build_tokenizer(config: TokenizerConfig, documents: Documents, file: bytes | None) -> Tokenizer:
    """Makes the tokenizer that `config` asks for; the same text gives the same tokenizer.

    Args:
        config: Which kind, and how large.
        documents: Starts reading the training text, whole or in pieces; called for the kinds that learn from it.
        file: Content of the tokenizer.json of `kind=file`.

    Raises:
        InputError: `file` is no usable tokenizer.json, or there is no text to learn from.
    """
    kinds = {
        "bpe": lambda: _train_bpe(config, documents),
        "char": lambda: _character_tokenizer(documents),
        "byte": _byte_tokenizer,
        "file": lambda: _read_tokenizer(config, file),
    }
    tokenizer = kinds[config.kind]()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if len(set(ids.values())) < len(ids):
        raise InputError(f"tokenizer.path={config.path}: two tokens share a number; repair its vocabulary")
    return Tokenizer(tokenizer.to_str())


def _train_bpe(config: TokenizerConfig, documents: Documents) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(documents(), config.max_training_bytes), trainer)
    return tokenizer


def _first_bytes(texts: Iterator[str], num_bytes: int) -> Iterator[str]:
    for text in texts:
        taken = take_bytes(text, num_bytes)
        yield taken
        num_bytes -= len(taken.encode())
        if num_bytes == 0 or len(taken) < len(text):
            return


def take_bytes(text: str, num_bytes: int) -> str:
    """The longest beginning of `text` of at most `num_bytes` bytes in UTF-8."""
    if len(text) * 4 <= num_bytes:
        return text
    return text.encode()[:num_bytes].decode(errors="ignore")


def _character_tokenizer(documents: Documents) -> tokenizers.Tokenizer:
    characters = {UNKNOWN_CHARACTER}
    for text in documents():
        characters.update(text)
    vocabulary = {character: number for number, character in enumerate(sorted(characters))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN_CHARACTER))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _byte_tokenizer() -> tokenizers.Tokenizer:
    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_alphabet() -> list[str]:
    """The character that byte-level vocabularies write for each byte.

    Source: `bytes_to_unicode` in openai/gpt-2, src/encoder.py.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _read_tokenizer(config: TokenizerConfig, file: bytes | None) -> tokenizers.Tokenizer:
    if file is None:
        raise TypeError("kind=file takes the file's content")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.decode())
    except Exception as error:  # `tokenizers` raises a bare Exception for anything it cannot read
        raise InputError(f"tokenizer.path={config.path}: not a tokenizer.json of `tokenizers` ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _without_dropout(tokenizer.model)
    return tokenizer


def _without_dropout(model: Any) -> None:
    if getattr(model, "dropout", None) is not None:
        model.dropout = None
