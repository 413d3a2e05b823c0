"""Text to token ids and back: four kinds of tokenizer in one file format, that of the `tokenizers` library."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from modules.config import TokenizerConfig
from modules.data import traits
from modules.data.encoding import CannotEncodeError, load_encoder, spells
from modules.data.traits import byte_alphabet
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

    Every tokenizer has SPECIAL_TOKENS, the first of them perhaps under another name, and text is never encoded as one
    of them: a document that contains `<|endoftext|>` is encoded as ordinary text. They enter a sequence only by ids.
    """

    def __init__(self, serialised: str, end_token: str = END_OF_TEXT):
        """Load the text of a tokenizer.json that `build_tokenizer` or `save` made, and the name of its end token."""
        self._encoder = load_encoder(serialised)
        self.end_token = end_token
        ids = self._encoder.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        """Number of rows that an embedding needs."""
        self.special_ids = tuple(ids[token] for token in (end_token, *SPECIAL_TOKENS[1:]))
        self.end_of_text_id, self.mask_id, self.padding_id = self.special_ids[:3]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, none of them special.

        Raises:
            CannotEncodeError: The text holds what the tokenizer has no token for.
        """
        try:
            return self._encoder.encode(text, add_special_tokens=False).ids
        except Exception as error:  # `tokenizers` raises a bare Exception
            raise CannotEncodeError(str(error)) from error

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        return [encoding.ids for encoding in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self._encoder.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text that `ids` add to that of `before`; decoded alone they may lose the space between both."""
        whole, start = self.decode([*before, *ids]), self.decode(before)
        if not whole.startswith(start):  # what follows has changed how the end before is written
            pairs = zip(start, whole, strict=False)
            start = "".join(left for left, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return whole[len(start) :]

    def id_of(self, token: str) -> int | None:
        """Return the id of a token such as `<|user|>`, or None if there is no such token."""
        return self._encoder.token_to_id(token)

    def token_of(self, number: int) -> str | None:
        """Return the name of a token, or None if there is no such token."""
        return self._encoder.id_to_token(number)

    @property
    def unknown_token(self) -> str | None:
        """The token for what has no other, or None if there is none."""
        number = traits.unknown_id(self._description)
        return None if number is None else self.token_of(number)

    def token_num_bytes(self) -> np.ndarray | None:
        """Return the UTF-8 bytes of text for which each token stands, int32 [vocab_size]; 0 for special tokens.

        None where they depend on the text, as under tokenizers that change it or have an unknown token.
        """
        return self.spelt_bytes() if traits.keeps_bytes(self._description) else None

    def spelt_bytes(self) -> np.ndarray:
        """Return the UTF-8 bytes that each token spells, int32 [vocab_size]; see `traits.spelt_bytes`."""
        return traits.spelt_bytes(self._description, self.vocab_size)

    @property
    def joins_at_words(self) -> bool:
        """Whether the pieces of a document have the tokens of the whole wherever it is cut between words."""
        return traits.joins_at_words(self._description)

    def serialised(self) -> str:
        """Return the text of its tokenizer.json."""
        return self._serialised

    @cached_property
    def _serialised(self) -> str:
        return self._encoder.to_str(pretty=True)

    @cached_property
    def _description(self) -> traits.Description:
        return json.loads(self._serialised)

    def save(self, path: Path) -> None:
        """Write a tokenizer.json, which `transformers.PreTrainedTokenizerFast` can load, too."""
        path.write_text(self.serialised(), encoding="utf-8")

    def save_for_transformers(self, folder: Path, max_length: int) -> None:
        """Write tokenizer.json and the tokenizer_config.json from which `AutoTokenizer` builds the same tokenizer.

        Without the second file it takes the class of the model's type, which puts GPT-2's rules around any vocabulary.
        """
        self.save(folder / "tokenizer.json")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
            "eos_token": self.end_token,
            "bos_token": self.end_token,
            "pad_token": PADDING,
            "mask_token": MASK,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, end_token: str = END_OF_TEXT) -> "Tokenizer":
        """Load what `save` wrote."""
        return cls(path.read_text(encoding="utf-8"), end_token)


def build_tokenizer(config: TokenizerConfig, documents: Documents, file: bytes | None) -> Tokenizer:
    """Return the tokenizer that `config` describes; the same text gives the same tokenizer.

    Args:
        config: Kind and largest vocabulary.
        documents: Returns the training text, in documents or pieces; called only for the kinds that learn from it.
        file: Content of the tokenizer.json of `kind=file`.

    Raises:
        InputError: `file` is not a usable tokenizer.json, or lacks the end token.
    """
    kinds = {
        "bpe": lambda: _train_bpe(config, documents),
        "char": lambda: _character_tokenizer(documents),
        "byte": _byte_tokenizer,
        "file": lambda: _read_tokenizer(config, file),
    }
    tokenizer, end_token = kinds[config.kind](), config.end_token or END_OF_TEXT
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if len(set(ids.values())) < len(ids):
        raise InputError(f"tokenizer.path={config.path}: two tokens share an id; repair its vocabulary")
    if config.end_token is not None and config.end_token not in ids:
        raise InputError(
            f"tokenizer.end_token={config.end_token}: {config.path} has no such token; name one that it has, or null"
        )
    if config.end_token is not None and _is_in_text(tokenizer, config.end_token):
        raise InputError(
            f"tokenizer.end_token={config.end_token}: text is encoded as this token, so it cannot tell where a "
            "document ends; name another, or null"
        )
    return Tokenizer(_with_special_tokens(tokenizer, (end_token, *SPECIAL_TOKENS[1:])), end_token)


def _with_special_tokens(tokenizer: tokenizers.Tokenizer, names: Sequence[str]) -> str:
    """Return the text of a tokenizer.json with special tokens of these names; new ones come after the highest id."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    highest = max(ids.values(), default=-1)
    if highest + 1 > len(ids):
        tokenizer = _with_entries(tokenizer, [name for name in names if name not in ids], highest + 1)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer.to_str()


def _with_entries(tokenizer: tokenizers.Tokenizer, names: Sequence[str], first: int) -> tokenizers.Tokenizer:
    """Return a tokenizer whose model has entries of these names, numbered from `first` on.

    `tokenizers` numbers an added token after the number of tokens, which another one may have if some ids are unused.
    """
    description = json.loads(tokenizer.to_str())
    description["model"]["vocab"] |= {name: number for number, name in enumerate(names, start=first)}
    return tokenizers.Tokenizer.from_str(json.dumps(description))


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


def read_vocabulary(config: TokenizerConfig, file: bytes) -> dict[str, int]:
    """Return the ids of all tokens in a tokenizer.json, before `build_tokenizer` adds its own.

    Raises:
        InputError: `file` is not a usable tokenizer.json.
    """
    return _read_tokenizer(config, file).get_vocab(with_added_tokens=True)


def can_end_documents(config: TokenizerConfig, file: bytes, name: str) -> bool:
    """Return whether a token of a tokenizer.json is one that text is never encoded as."""
    return not _is_in_text(_read_tokenizer(config, file), name)


def _is_in_text(tokenizer: tokenizers.Tokenizer, name: str) -> bool:
    number = tokenizer.get_vocab(with_added_tokens=True)[name]
    added = tokenizer.get_added_tokens_decoder().get(number)
    is_special = added is not None and added.special
    return not is_special and spells(tokenizer, name, number)


def joins_at_words(file: bytes) -> bool:
    """Return whether the pieces of a document have the tokens of the whole wherever it is cut between words.

    False for what is no tokenizer.json, which is refused when it is loaded.
    """
    try:
        # written anew, because older files lack fields
        return traits.joins_at_words(json.loads(tokenizers.Tokenizer.from_str(file.decode()).to_str()))
    except Exception:  # `tokenizers` raises a bare Exception for anything it cannot read
        return False


def _read_tokenizer(config: TokenizerConfig, file: bytes | None) -> tokenizers.Tokenizer:
    if file is None:
        raise TypeError("kind=file needs the file's content")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.decode())
    except Exception as error:  # `tokenizers` raises a bare Exception for anything it cannot read
        raise InputError(f"tokenizer.path={config.path}: not a tokenizer.json of `tokenizers` ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # the state of a part is its JSON
    if tokenizer.post_processor and traits.adds_tokens(json.loads(tokenizer.post_processor.__getstate__())):
        tokenizer.post_processor = None  # it would add tokens that no training text has
    _without_dropout(tokenizer.model)
    return tokenizer


def _without_dropout(model: Any) -> None:
    if getattr(model, "dropout", None) is not None:
        model.dropout = None
