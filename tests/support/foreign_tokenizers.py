"""Tokenizers of the kinds that others publish, made on the spot, and text that is hard for them."""

import json
import random
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "To be, or not to be: that is the question, whether 'tis nobler in the mind to suffer 12345 slings.\n" * 20,
    "".join(random.Random(0).choices("我们的机器学习模型可以处理很长中文本而没有空格", k=600)),
    "größe naïve café e\u0301 \u0301 😀 \ufb01 x   y\t\tz\n\n\n" * 5,
)
HARD = (
    "First </s> <|endoftext|> [UNK] <unk> [MASK] line\n\tTabbed  two   spaces naïve café e\u0301 \ufb01 ends ",
    " lead and trail \n",
)
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel.alphabet()


def changed(tokenizer: Tokenizer, **model: Any) -> Tokenizer:
    """Return the tokenizer with other settings of its model."""
    description = json.loads(tokenizer.to_str())
    description["model"] |= model
    return Tokenizer.from_str(json.dumps(description))


def with_holes(tokenizer: Tokenizer, first: int = 300, size: int = 5) -> Tokenizer:
    """Return the tokenizer with `size` unused ids before the token that had id `first`."""
    description = json.loads(tokenizer.to_str())
    vocab = {name: number + size * (number >= first) for name, number in description["model"]["vocab"].items()}
    description["model"]["vocab"] = vocab
    for token in description["added_tokens"]:
        token["id"] = vocab[token["content"]]
    return Tokenizer.from_str(json.dumps(description))


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_level(*specials: str, normalizer: Any = None, words: Any = None, prefix: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    split = [pre_tokenizers.Split(Regex(words), "isolated")] if words else []
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not words)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=BYTES, special_tokens=list(specials), show_progress=False
    )
    return _trained(tokenizer, trainer)


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=400, special_tokens=names, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _unigram(*before: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250, unk_token="<unk>", special_tokens=["<unk>", "</s>", "<|endoftext|>"], show_progress=False
    )
    return _trained(tokenizer, trainer)


def _llama2() -> Tokenizer:
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = [*"▁abcdefghijklmnopqrstuvwxyzTW,:.'"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=names,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    made = json.loads(_trained(tokenizer, trainer).to_str())
    made["pre_tokenizer"] = None
    made["added_tokens"] = made["added_tokens"][:3]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made = Tokenizer.from_str(json.dumps(made))
    made.decoder = decoders.Sequence(steps)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def _clip() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    names = ["<unk>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=names, end_of_word_suffix="</w>", show_progress=False)
    return _trained(tokenizer, trainer)


def _wordlevel() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["[UNK]", "</s>", "<|endoftext|>"]
    return _trained(tokenizer, trainers.WordLevelTrainer(vocab_size=200, special_tokens=names, show_progress=False))


def _llama3() -> Tokenizer:
    tokenizer = changed(_byte_level("<|begin|>", "<|end_of_text|>", words=LLAMA3_WORDS), ignore_merges=True)
    begin = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return tokenizer


def _with_added() -> Tokenizer:
    tokenizer = _byte_level("<|endoftext|>")
    tokenizer.add_tokens(["    ", "qzq"])
    return tokenizer


_ACCENTS = [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
KINDS = {
    "wordpiece": _wordpiece,
    "unigram": _unigram,
    "unigram_by_words": lambda: _unigram(pre_tokenizers.WhitespaceSplit()),
    "llama2": _llama2,
    "llama2_holes": lambda: with_holes(_llama2()),
    "llama3": _llama3,
    "prefixed": lambda: _byte_level("<|endoftext|>", prefix=True),
    "nfc": lambda: _byte_level("<|endoftext|>", normalizer=normalizers.NFC()),
    "no_accents": lambda: _byte_level(normalizer=normalizers.Sequence(_ACCENTS)),
    "word_ends": _clip,
    "wordlevel": _wordlevel,
    "added": _with_added,
    "gpt2": lambda: _byte_level("<|endoftext|>"),
    "gpt2_holes": lambda: with_holes(_byte_level("<|endoftext|>")),
}


@cache
def foreign(kind: str) -> bytes:
    """Return the tokenizer.json of a kind."""
    return KINDS[kind]().to_str().encode()
