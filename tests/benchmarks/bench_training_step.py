"""A training step, AdamW included, beside transformers' GPT-2 and a plain torch loop: same weights, data, optimizer.

Run: python tests/benchmarks/bench_training_step.py
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.config import OptimizerConfig
from modules.huggingface.export import save_huggingface
from modules.losses import causal_loss
from modules.model import GPT, initialize
from modules.model_config import ModelConfig
from modules.optimizer import build_optimizer, parameter_groups

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
SETTINGS = (("12 x 64, 65 characters", 12, 64, 65, 20), ("8 x 256, 8192 tokens", 8, 256, 8192, 8))
"""Name, sequences, tokens of each, vocabulary, timed steps. The model is `tiny`: 4 layers, 4 heads, width 128."""


def main() -> list[Row]:
    """Medians of one step in milliseconds, the three taking turns."""
    rows = []
    for name, batch_size, length, vocab_size, repeats in SETTINGS:
        steps = make_steps(batch_size, length, vocab_size)
        ours, peer, plain = (1000 * seconds for seconds in alternating_medians(list(steps.values()), repeats))
        rows.append((f"training step, {name}, beside transformers (ms)", ours, peer, ours / peer))
        rows.append((f"training step, {name}, beside plain torch (ms)", ours, plain, ours / plain))
    return rows


def alternating_medians(steps: list[Callable[[], Any]], repeats: int, warmups: int = 3) -> list[float]:
    """Median seconds of each; they take turns, so that what disturbs the machine disturbs all."""
    seconds: list[list[float]] = [[] for _ in steps]
    for repeat in range(warmups + repeats):
        for number, step in enumerate(steps):
            start = time.perf_counter()
            step()
            if repeat >= warmups:
                seconds[number].append(time.perf_counter() - start)
    return [statistics.median(each) for each in seconds]


def make_steps(batch_size: int, length: int, vocab_size: int) -> dict[str, Callable[[], float]]:
    """One training step each of ours, transformers' and plain torch's, which return the loss."""
    config = ModelConfig(num_layers=4, num_heads=4, hidden_dim=128, max_positions=length)
    model = GPT(config, vocab_size)
    initialize(model, seed=1)
    ids = torch.randint(0, vocab_size, (batch_size, length + 1), generator=torch.Generator().manual_seed(1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    batch = {"input_ids": inputs, "targets": targets}
    peer, plain = transformers_model(model), plain_model(model)
    return {
        "ours": training_step(model, lambda: causal_loss(model, batch).total / targets.numel()),
        "transformers": training_step(
            peer, lambda: F.cross_entropy(peer(inputs, use_cache=False).logits.flatten(0, 1), targets.flatten())
        ),
        "plain torch": training_step(plain, lambda: F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten())),
    }


def training_step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], float]:
    """A step with fused AdamW, the same for all: the models are compared."""
    config = OptimizerConfig()
    groups = parameter_groups(model, config) if isinstance(model, GPT) else [{"params": list(model.parameters())}]
    optimizer = build_optimizer(groups, config)

    def step() -> float:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def transformers_model(model: GPT) -> nn.Module:
    """transformers' GPT-2 with the same weights."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(Path(folder), model.config, model.vocab_size, model.named_parameters())
        return GPT2LMHeadModel.from_pretrained(folder).train()


class PlainBlock(nn.Module):
    """A block as most tutorials write it."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self._split(x))
        attended = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.projection(attended)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(self.attention_norm(x)).chunk(3, dim=-1)


class PlainGPT(nn.Module):
    """A GPT-2 with whole logits, as most tutorials write it."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.hidden_dim)
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_dim)
        blocks = [PlainBlock(config.hidden_dim, config.num_heads) for _ in range(config.num_layers)]
        self.blocks = nn.Sequential(*blocks)
        self.final_norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.token_embedding(input_ids) + self.position_embedding(positions)
        return F.linear(self.final_norm(self.blocks(x)), self.token_embedding.weight)


def plain_model(model: GPT) -> PlainGPT:
    """The plain model with the same weights."""
    plain = PlainGPT(model.config, model.vocab_size)
    weights = {}
    for name, parameter in model.named_parameters():
        name = name.replace("attention.qkv", "qkv").replace("attention.projection", "projection")
        weights[name.replace("mlp.up", "up").replace("mlp.down", "down")] = parameter.detach()
    weights["token_embedding.weight"] = weights["token_embedding.weight"][: model.vocab_size]
    plain.load_state_dict(weights)
    return plain


if __name__ == "__main__":
    for row in main():
        print("{:72s} {:10.1f} {:10.1f} {:8.2f}".format(*row))
