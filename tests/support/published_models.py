"""Tiny models as others publish them: made by `transformers`, with a tokenizer of their own."""

import os
from pathlib import Path
from typing import Any

import torch
from tiny_run import write_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": {"model_type": "llama", **_LLAMA, "tie_word_embeddings": True},
    "untied": {"model_type": "qwen2", **_LLAMA, "tie_word_embeddings": False},
    "normed": {"model_type": "qwen3", **_LLAMA, "head_dim": 16, "tie_word_embeddings": False},
}


def write_published(folder: Path, kind: str, *, num_rows: int | None = None, **save: Any) -> Any:
    """Write a model of a kind and its tokenizer, and return the model.

    Args:
        num_rows: Rows of its vocabulary; None takes as many as there are tokens.
        save: Arguments of `save_pretrained`.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder.parent / "text-of-the-tokenizer.txt")
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = num_rows or tokenizer.get_vocab_size()
    settings = {**KINDS[kind], "vocab_size": rows, "eos_token_id": tokenizer.token_to_id(END), "bos_token_id": None}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    model.save_pretrained(folder, **save)
    return model


def _tokenizer(text: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(write_text(text))], trainer)
    return tokenizer
