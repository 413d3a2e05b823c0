"""Tiny models for the commands that measure and use a model: a classifier and language models, as folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from foreign_models import tokenizer_of
from foreign_tokenizers import foreign
from model_files import as_json

from modules.huggingface.adapter import save_adapter
from modules.huggingface.export import save_huggingface
from modules.huggingface.folder import LocalFolder, read_config
from modules.huggingface.weights import trained_shapes
from modules.model import GPT
from modules.model_config import ClassifierConfig, LoraConfig, ModelConfig

SHAPE = ModelConfig(num_layers=1, num_heads=2, hidden_dim=16, max_positions=64)
END = 2
WORDS = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler", "mind", "suffer", "arrows"]


def write_task_model(folder: Path, *, labels: Sequence[str] = (), seed: int = 0) -> Path:
    """Write a model with random weights: a classifier if there are labels; the tokenizer is Llama 2's."""
    folder.mkdir(parents=True, exist_ok=True)
    classifier = ClassifierConfig(labels=tuple(labels)) if labels else None
    shape = SHAPE.model_copy(update={"classifier": classifier})
    num_rows = max(tokenizer_of("llama2").get_vocab(with_added_tokens=True).values()) + 1
    generator = torch.Generator().manual_seed(seed)
    model = GPT(shape, num_rows).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (3 if "score" in name else 0.3))
    save_huggingface(folder, shape, num_rows, model.named_parameters(), end_ids=[END], padding_id=END)
    (folder / "tokenizer.json").write_bytes(foreign("llama2"))
    (folder / "tokenizer_config.json").write_bytes(as_json({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def write_task_adapter(folder: Path, base: Path) -> Path:
    """Write an adapter of low rank with random weights for a model of `write_task_model`."""
    folder.mkdir()
    config = read_config(LocalFolder(base)).model_copy(update={"lora": LoraConfig(rank=2)})
    generator = torch.Generator().manual_seed(1)
    shapes = trained_shapes(config, config.vocab_size or 0)
    weights = ((name, torch.randn(shape, generator=generator) * 0.3) for name, shape in shapes.items())
    save_adapter(folder, config, shapes, weights)
    return folder


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a .jsonl."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def read_lines(text: str) -> list[dict[str, Any]]:
    """Return the objects of a .jsonl."""
    return [json.loads(line) for line in text.splitlines()]
