"""A training step, AdamW included, beside transformers, nanoGPT and plain torch: same weights, data and optimizer.

Run: [NANOGPT=folder] python tests/benchmarks/bench_training_step.py
"""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from nanogpt import nanogpt_folder, nanogpt_model
from torch import Tensor, nn

from modules.config import OptimizerConfig
from modules.huggingface.export import save_huggingface
from modules.losses import causal_loss
from modules.model import GPT, initialize
from modules.model_config import ModelConfig
from modules.optimizer import build_optimizer, parameter_groups

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
SETTINGS = (
    ("12 x 64, 65 characters", 12, 64, 65, 40),
    ("8 x 256, 8192 tokens", 8, 256, 8192, 12),
    ("2 x 1024, 8192 tokens", 2, 1024, 8192, 12),
)
"""Name, sequences, tokens of each, vocabulary, timed steps. The model is `tiny`: 4 layers, 4 heads, width 128."""


def main() -> Iterator[Row]:
    """Medians of one step in milliseconds, in turns; raises `FileNotFoundError` at the end if nanoGPT is missing."""
    missing = _reason_without_nanogpt()
    for name, batch_size, length, vocab_size, repeats in SETTINGS:
        steps = make_steps(batch_size, length, vocab_size, with_nanogpt=missing is None)
        ours, *others = (1000 * seconds for seconds in alternating_medians(list(steps.values()), repeats))
        for peer, milliseconds in zip(list(steps)[1:], others, strict=True):
            yield f"training step, {name}, beside {peer} (ms)", ours, milliseconds, ours / milliseconds
    if missing is not None:
        raise missing


def _reason_without_nanogpt() -> FileNotFoundError | None:
    try:
        nanogpt_folder()
    except FileNotFoundError as error:
        return error
    return None


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


def make_steps(
    batch_size: int, length: int, vocab_size: int, *, with_nanogpt: bool = False
) -> dict[str, Callable[[], float]]:
    """One training step each of ours, transformers', plain torch's and nanoGPT's, which return the loss."""
    config = ModelConfig(num_layers=4, num_heads=4, hidden_dim=128, max_positions=length)
    model = GPT(config, vocab_size)
    initialize(model, seed=1)
    ids = torch.randint(0, vocab_size, (batch_size, length + 1), generator=torch.Generator().manual_seed(1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    batch = {"input_ids": inputs, "targets": targets}
    peer, plain = transformers_model(model), plain_model(model)
    steps = {
        "ours": training_step(model, lambda: causal_loss(model, batch).total / targets.numel()),
        "transformers": training_step(
            peer, lambda: F.cross_entropy(peer(inputs, use_cache=False).logits.flatten(0, 1), targets.flatten())
        ),
        "plain torch": training_step(plain, lambda: F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten())),
    }
    if with_nanogpt:
        nanogpt = nanogpt_with_weights_of(plain, model)
        steps["nanoGPT"] = training_step(nanogpt, lambda: nanogpt(inputs, targets)[1])
    return steps


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


def nanogpt_with_weights_of(plain: "PlainGPT", model: GPT) -> nn.Module:
    """nanoGPT's model with the same weights."""
    module, config = nanogpt_model(), model.config
    size = {"n_layer": config.num_layers, "n_head": config.num_heads, "n_embd": config.hidden_dim}
    settings = {**size, "block_size": config.max_positions, "vocab_size": model.vocab_size, "dropout": 0.0}
    with redirect_stdout(io.StringIO()):  # it prints its number of parameters
        nanogpt = module.GPT(module.GPTConfig(**settings, bias=True))
    names = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f", "blocks": "h"}
    names |= {"attention_norm": "ln_1", "mlp_norm": "ln_2", "qkv": "attn.c_attn", "projection": "attn.c_proj"}
    names |= {"up": "mlp.c_fc", "down": "mlp.c_proj"}
    weights = {
        ".".join(["transformer", *(names.get(part, part) for part in name.split("."))]): weight
        for name, weight in plain.state_dict().items()
    }
    nanogpt.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    return nanogpt


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
