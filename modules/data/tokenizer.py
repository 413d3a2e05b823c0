"""Text to token ids and back: four kinds of tokenizer in one file format, that of the `tokenizers` library."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers

from modules.config import TokenizerConfig
from modules.data import traits
from modules.data.control_tokens import ControlEncoder
from modules.data.decoding import TextStream, text_after, text_stream
from modules.data.encoding import CannotEncodeError, load_encoder
from modules.data.tokenizer_file import (
    added_by_post_processor,
    begin_as_documents_do,
    check_named,
    encode_all_text_alike,
    read_tokenizer_file,
    usual_name,
    with_all_special,
    with_special_tokens,
)
from modules.data.trained_tokenizers import Documents, byte_tokenizer, character_tokenizer, train_bpe
from modules.errors import InputError

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
PADDING = "<|pad|>"
CHAT_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SPECIAL_TOKENS = (END_OF_TEXT, MASK, PADDING, *CHAT_ROLES)
MASK_TOKENS = (MASK, "[MASK]", "<mask>")
"""Usual names of the token that the masked objective predicts; ours comes first, as nobody else adds it."""
PADDING_TOKENS = (PADDING, "[PAD]", "<pad>")


class Tokenizer:
    """A tokenizer that encodes text to token ids and decodes it.

    Text is never encoded as a special token: a document that contains `<|endoftext|>` is encoded as ordinary text. They
    enter a sequence only by ids. Tokenizers that `build_tokenizer` made have SPECIAL_TOKENS unless
    `tokenizer.added_tokens` says otherwise, the first of them perhaps under another name; those that came with a model
    have what its makers gave them.
    """

    def __init__(
        self,
        serialised: str,
        end_token: str | None = END_OF_TEXT,
        *,
        mask_token: str | None = None,
        padding_token: str | None = None,
        end_ids: Sequence[int] = (),
        files: Mapping[str, bytes] | None = None,
    ):
        """Load the text of a tokenizer.json.

        Args:
            serialised: What `build_tokenizer`, `save` or others made.
            end_token: Name of the token that ends a document; None if it has none.
            mask_token: Name of its mask token; None takes the usual one that it has, if any.
            padding_token: As `mask_token`.
            end_ids: Tokens at which a model of it stops; empty takes the end token alone.
            files: The files that came with it, which `save_for_transformers` writes as they are; None if none came.
        """
        self._encoder = load_encoder(serialised)
        self.files = files
        """The files that came with it, by name; None if none came."""
        ids = self._encoder.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        """Number of rows that an embedding needs."""
        self.end_token = end_token
        self._end_id = None if end_token is None else ids[end_token]
        self.end_ids = tuple(end_ids) or (() if self._end_id is None else (self._end_id,))
        """Tokens at which a model of it stops, perhaps several, perhaps none."""
        self.mask_token = mask_token or usual_name(MASK_TOKENS, ids)
        self.mask_id = None if self.mask_token is None else ids[self.mask_token]
        self.padding_token = padding_token or usual_name(PADDING_TOKENS, ids)
        self.padding_id = None if self.padding_token is None else ids[self.padding_token]
        self._begin_ids, _ = added_by_post_processor(self._encoder)
        self.special_ids = self._special_ids(ids)
        """Tokens that the masked objective neither predicts nor draws."""

    def _special_ids(self, ids: Mapping[str, int]) -> tuple[int, ...]:
        own = (self.end_token, *SPECIAL_TOKENS[1:])
        if all(name in ids for name in own):
            return tuple(ids[name] for name in own if name is not None)
        special = {number for number, token in self._encoder.get_added_tokens_decoder().items() if token.special}
        return tuple(sorted({*special, *self.end_ids, *(n for n in (self.mask_id, self.padding_id) if n is not None)}))

    @property
    def end_of_text_id(self) -> int:
        """The token that ends a document.

        Raises:
            InputError: It has none.
        """
        if self._end_id is None:
            raise InputError("the tokenizer has no token that ends a document; name one in tokenizer.end_token")
        return self._end_id

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The tokens that a prompt begins with; empty if there are none."""
        return tuple(self._begin_ids)

    @property
    def begin_id(self) -> int | None:
        """The token that begins a document; None if there is none."""
        return self._begin_ids[0] if len(self._begin_ids) == 1 else None

    @property
    def begin_token(self) -> str | None:
        """The name of the token that begins a document; None if there is none."""
        return None if self.begin_id is None else self.token_of(self.begin_id)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the token ids of a text that a model is to continue.

        They are those that `transformers` gives, except in two cases. What a post-processor puts after a text, such as
        BERT's `[SEP]` or `</s>`, is left out: it would tell the model that the text is over, and it is to be continued.
        And the name of a special token within the text is text: `<s>` typed by a user begins nothing.

        Raises:
            CannotEncodeError: The text holds what the tokenizer has no token for.
        """
        return [*self._begin_ids, *self.encode(text)]

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
        return text_after(self.decode, before, ids)

    def text_stream(self, before: Sequence[int]) -> TextStream:
        """Return what gives the text of tokens that follow `before`, token by token."""
        return text_stream(self._encoder, self._decoder, self.decode, before)

    @cached_property
    def control_encoder(self) -> ControlEncoder:
        """What encodes text with its control tokens, as a chat template writes it."""
        return ControlEncoder(self.serialised())

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
    def loses_nothing(self) -> bool:
        """Whether every character becomes a token of its own value; False where that cannot be told."""
        return traits.loses_nothing(self._description)

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

    @property
    def _decoder(self) -> traits.Description | None:
        part = self._encoder.decoder
        return json.loads(part.__getstate__()) if part else None  # the state of a part is its JSON

    def save(self, path: Path) -> None:
        """Write a tokenizer.json, which `transformers.PreTrainedTokenizerFast` can load, too."""
        path.write_text(self.serialised(), encoding="utf-8")

    def save_for_transformers(self, folder: Path, max_length: int) -> None:
        """Write tokenizer.json and the tokenizer_config.json from which `AutoTokenizer` builds the same tokenizer.

        Without the second file it takes the class of the model's type, which puts GPT-2's rules around any vocabulary.
        Of a tokenizer that came with a model, the files that came are written as they are.

        Args:
            folder: Where to.
            max_length: Longest sequence of the model, for a tokenizer that came with none.
        """
        if self.files is not None:
            _write_files(folder, self.files)
            return
        self.save(folder / "tokenizer.json")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
            "eos_token": self.end_token,
            "bos_token": self.begin_token or self.end_token,
            "pad_token": self.padding_token,
            "mask_token": self.mask_token,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, end_token: str = END_OF_TEXT, mask_token: str | None = None) -> "Tokenizer":
        """Load what `save` wrote."""
        return cls(path.read_text(encoding="utf-8"), end_token, mask_token=mask_token)


def build_tokenizer(config: TokenizerConfig, documents: Documents, file: bytes | None) -> Tokenizer:
    """Return the tokenizer that `config` describes; the same text gives the same tokenizer.

    Args:
        config: Kind and largest vocabulary, or what is made of a given tokenizer.json.
        documents: Returns the training text, in documents or pieces; called only for the kinds that learn from it.
        file: Content of the tokenizer.json of `kind=file`.

    Raises:
        InputError: `file` is not a usable tokenizer.json, or lacks a token that `config` names.
    """
    if config.kind == "file":
        return _given_tokenizer(config, file)
    kinds = {
        "bpe": lambda: train_bpe(documents, config.vocab_size - len(SPECIAL_TOKENS), config.max_training_bytes),
        "char": lambda: character_tokenizer(documents),
        "byte": byte_tokenizer,
    }
    return Tokenizer(with_special_tokens(kinds[config.kind](), SPECIAL_TOKENS).to_str())


def _given_tokenizer(config: TokenizerConfig, file: bytes | None) -> Tokenizer:
    tokenizer = _read(config, file)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    check_named(tokenizer, config)
    end, begin = config.end_token or END_OF_TEXT, config.begin_token
    if config.added_tokens != "all" and end not in ids:
        raise InputError(
            f"tokenizer.added_tokens={config.added_tokens}: {config.path} has no {end}; name the token of it that ends "
            "a document in tokenizer.end_token"
        )
    mask = config.mask_token
    if config.added_tokens == "all":
        tokenizer = with_special_tokens(tokenizer, (end, mask or MASK, PADDING, *CHAT_ROLES))
    else:
        mask = mask or usual_name(MASK_TOKENS, ids) or (MASK if config.added_tokens == "mask" else None)
    tokenizer = with_all_special(tokenizer, [name for name in (end, mask, begin) if name is not None])
    begin_as_documents_do(tokenizer, begin)
    return Tokenizer(tokenizer.to_str(), end, mask_token=config.mask_token)


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def joins_at_words(file: bytes) -> bool:
    """Return whether the pieces of a document have the tokens of the whole wherever it is cut between words.

    These are the tokenizers that prepared data of format 2 was right for. False for what is no tokenizer.json, which is
    refused when it is loaded.
    """
    try:
        # written anew, because older files lack fields
        description = json.loads(tokenizers.Tokenizer.from_str(file.decode()).to_str())
    except Exception:  # `tokenizers` raises a bare Exception for anything it cannot read
        return False
    return not traits.adds_tokens(description["post_processor"]) and traits.joins_at_words(description)


def _read(config: TokenizerConfig, file: bytes | None) -> tokenizers.Tokenizer:
    if file is None:
        raise TypeError("kind=file needs the file's content")
    tokenizer = read_tokenizer_file(file, f"tokenizer.path={config.path}")
    encode_all_text_alike(tokenizer)
    return tokenizer
