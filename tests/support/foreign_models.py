"""Model folders as others publish them: random weights of the GPT-2 family, and a tokenizer and end token of theirs."""

import json
from pathlib import Path
from typing import Any

import torch
from foreign_tokenizers import foreign
from tokenizers import Tokenizer

from modules.huggingface.export import save_huggingface
from modules.model import GPT
from modules.model_config import ModelConfig

SHAPE = ModelConfig(num_layers=1, num_heads=2, hidden_dim=16, max_positions=64)


def tokenizer_of(kind: str) -> Tokenizer:
    """Return the tokenizer as `transformers` uses it on text without special tokens."""
    return Tokenizer.from_str(foreign(kind).decode())


def write_model(folder: Path, kind: str, *, end: int | None, num_rows: int | None = None, **settings: Any) -> GPT:
    """Write a model folder with the tokenizer of a kind, and return the model.

    Args:
        end: Its eos_token_id.
        num_rows: Size of its vocabulary; None takes the tokenizer's.
        settings: Other fields of config.json.
    """
    folder.mkdir(exist_ok=True)
    rows = num_rows or max(tokenizer_of(kind).get_vocab(with_added_tokens=True).values()) + 1
    generator = torch.Generator().manual_seed(0)
    model = GPT(SHAPE, rows).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    save_huggingface(folder, SHAPE, rows, model.named_parameters(), end_ids=[] if end is None else [end])
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    (folder / "tokenizer.json").write_bytes(foreign(kind))
    return model
