"""Tokenizers of several kinds for the tests of tasks, as a model comes with them."""

import json
from functools import cache

from foreign_tokenizers import foreign
from model_files import model_files

from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.tokenizer import Tokenizer

NAMES = {
    "gpt2": {"eos_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|begin|>", "eos_token": "<|end_of_text|>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "no_accents": {},
    "unigram": {"eos_token": "</s>", "unk_token": "<unk>"},
}


@cache
def task_tokenizer(kind: str, **names: str) -> Tokenizer:
    """Return the tokenizer of a kind: `gpt2` and `unigram` begin with nothing, `llama2` and `llama3` with a token."""
    return load_pretrained(model_files(kind, **{**NAMES[kind], **names}), "model.path=m")


@cache
def lossy_tokenizer() -> Tokenizer:
    """Return one that leaves out what it has no token for, and has no unknown token to show it."""
    description = json.loads(foreign("gpt2"))
    description["model"]["vocab"] = {"a": 0, "b": 1, "<|endoftext|>": 2}
    description["model"]["merges"] = []
    description["pre_tokenizer"] = description["decoder"] = description["post_processor"] = None
    description["added_tokens"][0]["id"] = 2
    return load_pretrained({"tokenizer.json": json.dumps(description).encode()}, "model.path=m")
