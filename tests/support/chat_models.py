"""Tiny models that chat: random weights, a tokenizer of bytes, and answers of letters that never end by themselves."""

from pathlib import Path

import torch

from modules.chat_template import ChatTemplate
from modules.config import TokenizerConfig
from modules.data.tokenizer import Tokenizer, build_tokenizer
from modules.huggingface.export import save_huggingface
from modules.model import GPT
from modules.model_config import ModelConfig

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def byte_tokenizer() -> Tokenizer:
    return build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None)


def template_of(source: str = TEMPLATE) -> ChatTemplate:
    return ChatTemplate({"default": source}, {}, "model.path=tiny")


def chat_model(max_positions: int) -> GPT:
    """Return a model whose most likely token is always a letter."""
    config = ModelConfig(
        family="llama",
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=24,
        max_positions=max_positions,
        tie_embeddings=False,
    )
    generator = torch.Generator().manual_seed(3)
    tokenizer = byte_tokenizer()
    model = GPT(config, tokenizer.vocab_size).eval()
    letters = [tokenizer.encode(letter)[0] for letter in "abcdefghijklmnopqrstuvwxyz"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 + ("norm.weight" in name))
        head = model.head.weight
        kept = head[letters].clone()
        head.zero_()
        head[letters] = kept
    return model


def write_chat_model(folder: Path, max_positions: int, template: str | None = TEMPLATE) -> Path:
    """Write such a model as others publish it, with a template or without, and return its folder."""
    folder.mkdir()
    model, tokenizer = chat_model(max_positions), byte_tokenizer()
    named = model.named_parameters()
    save_huggingface(folder, model.config, tokenizer.vocab_size, named, end_ids=[tokenizer.end_of_text_id])
    tokenizer.save_for_transformers(folder, max_positions)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
