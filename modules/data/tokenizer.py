"""Text to token ids and back: four kinds of tokenizer in one file format, that of the `tokenizers` library."""

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
"""Token (U+FFFD) of `kind=char` for characters that the training text lacks; it is not a special token."""

Documents = Callable[[], Iterator[str]]


class Tokenizer:
    """A tokenizer that encodes text to token ids and decodes it.

    Every tokenizer has SPECIAL_TOKENS, and text is never encoded as one of them: a document that contains
    `<|endoftext|>` is encoded as ordinary text. They enter a sequence only by their ids.
    """

    def __init__(self, serialised: str):
        """Load the text of a tokenizer.json that `build_tokenizer` or `save` made."""
        self._encoder = load_encoder(serialised)
        ids = self._encoder.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        """Number of rows that an embedding needs."""
        self.special_ids = tuple(ids[token] for token in SPECIAL_TOKENS)
        self.end_of_text_id, self.mask_id, self.padding_id = self.special_ids[:3]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, none of them special."""
        return self._encoder.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        return [encoding.ids for encoding in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self._encoder.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_of(self, token: str) -> int:
        """Return the id of a token such as `<|user|>`."""
        return self._encoder.get_vocab(with_added_tokens=True)[token]

    def token_num_bytes(self) -> np.ndarray:
        """Return the UTF-8 bytes that each token encodes, int32 [vocab_size]; 0 for special tokens and unused ids."""
        byte_level = "ByteLevel" in json.dumps(json.loads(self.serialised())["decoder"])
        sizes = np.zeros(self.vocab_size, dtype=np.int32)
        for token, number in self._encoder.get_vocab(with_added_tokens=False).items():
            sizes[number] = len(token) if byte_level else len(token.replace("\u2581", " ").encode())
        for number, token in self._encoder.get_added_tokens_decoder().items():
            sizes[number] = 0 if token.special else len(token.content.encode())
        return sizes

    def serialised(self) -> str:
        """Return the text of its tokenizer.json."""
        return self._encoder.to_str(pretty=True)

    def save(self, path: Path) -> None:
        """Write a tokenizer.json, which `transformers.PreTrainedTokenizerFast` can load, too."""
        path.write_text(self.serialised(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Load what `save` wrote."""
        return cls(path.read_text(encoding="utf-8"))


def build_tokenizer(config: TokenizerConfig, documents: Documents, file: bytes | None) -> Tokenizer:
    """Return the tokenizer that `config` describes; the same text gives the same tokenizer.

    Args:
        config: Kind and largest vocabulary.
        documents: Returns the training text, in documents or pieces; called only for the kinds that learn from it.
        file: Content of the tokenizer.json of `kind=file`.

    Raises:
        InputError: `file` is not a usable tokenizer.json.
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
        raise InputError(f"tokenizer.path={config.path}: two tokens share an id; repair its vocabulary")
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
    """Return the longest beginning of `text` that has at most `num_bytes` bytes in UTF-8."""
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
    """Return the character that byte-level vocabularies write for each byte.

    Source: `bytes_to_unicode` in openai/gpt-2, src/encoder.py.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _read_tokenizer(config: TokenizerConfig, file: bytes | None) -> tokenizers.Tokenizer:
    if file is None:
        raise TypeError("kind=file needs the file's content")
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
