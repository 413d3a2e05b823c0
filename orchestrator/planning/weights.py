"""The parameters of a model from its shape alone, with the names, shapes and order that the built model has.

Each is counted as it lies in memory: the vocabulary with its padding, queries, keys and values as one matrix.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from modules.huggingface.folder import stored
from modules.model_config import ModelConfig, is_in_a_block, padded_vocab_size

OptimizerName = Literal["adamw", "muon"]
Part = Literal["vocabulary", "positions", "attention", "feed-forward", "norms", "output head", "classifier", "adapters"]


@dataclass(frozen=True)
class Weight:
    """One parameter."""

    name: str
    part: Part
    shape: tuple[int, ...]
    is_trained: bool = True
    is_matrix: bool = False
    """Whether it has weight decay, which makes it one of the optimizer's first group."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class LinearLayer:
    """One matrix product of a block, with the adapters beside it."""

    name: str
    part: Part
    num_inputs: int
    num_outputs: int
    adapted: tuple[tuple[str, int], ...]
    """Those layers of `transformers` in it that have an adapter: name and outputs."""
    has_bias: bool


def linear_layers(config: ModelConfig) -> list[LinearLayer]:
    """Return the linear layers of one block, in the model's order."""
    width, inner = config.hidden_dim, config.num_heads * config.width_per_head
    kv, mlp, is_gpt2 = config.kv_heads * config.width_per_head, config.feed_forward_dim, config.family == "gpt2"
    first, num_ups = ("mlp.up", mlp) if is_gpt2 else ("mlp.gate_up", 2 * mlp)
    rows: list[tuple[str, Part, int, int, bool]] = [
        ("attention.qkv", "attention", width, inner + 2 * kv, is_gpt2 or config.qkv_bias),
        ("attention.projection", "attention", inner, width, is_gpt2),
        (first, "feed-forward", width, num_ups, is_gpt2),
        ("mlp.down", "feed-forward", mlp, width, is_gpt2),
    ]
    return [
        LinearLayer(name, part, inputs, outputs, _adapted(config, name, outputs), bias)
        for name, part, inputs, outputs, bias in rows
    ]


def _adapted(config: ModelConfig, layer: str, num_outputs: int) -> tuple[tuple[str, int], ...]:
    if config.lora is None:
        return ()
    tensors = stored(config, f"blocks.0.{layer}.weight", num_outputs).tensors
    paths = [(name.removesuffix(".weight"), outputs) for name, outputs in tensors]
    return tuple((path.rpartition(".")[2], outputs) for path, outputs in paths if config.lora.adapts(path))


def weights(config: ModelConfig, vocab_size: int) -> list[Weight]:
    """Return every parameter of a model; tied weights are one.

    Args:
        config: The shape.
        vocab_size: Tokens of the tokenizer; memory holds the next multiple of 64.
    """
    rows, width = padded_vocab_size(vocab_size), config.hidden_dim
    found = [Weight("token_embedding.weight", "vocabulary", (rows, width), is_matrix=True)]
    num_own_rows = 0 if config.lora is None else len(config.lora.trained_tokens)
    own = [Weight("token_embedding.trained_rows", "adapters", (num_own_rows, width), is_matrix=True)] * bool(
        num_own_rows
    )
    found += own
    if config.family == "gpt2":
        found.append(Weight("position_embedding.weight", "positions", (config.max_positions, width), is_matrix=True))
    for layer in range(config.num_layers):
        found += _block(config, f"blocks.{layer}.")
    found += _norm(config, "final_norm", width)
    if config.classifier is not None:
        found.append(Weight("score.weight", "classifier", (len(config.classifier.labels), width), is_matrix=True))
    elif not config.tie_embeddings:
        found.append(Weight("head.weight", "output head", (rows, width), is_matrix=True))
        found += [Weight("head.trained_rows", weight.part, weight.shape, is_matrix=True) for weight in own]
    return found if config.lora is None else [_frozen_unless_adapter(weight) for weight in found]


def num_elements(found: Iterable[Weight]) -> int:
    """Return the number of elements of parameters."""
    return sum(weight.numel for weight in found)


def by_part(found: Iterable[Weight]) -> dict[Part, int]:
    """Return the number of elements of each part of a model."""
    counts: dict[Part, int] = {}
    for weight in found:
        counts[weight.part] = counts.get(weight.part, 0) + weight.numel
    return counts


def optimizer_groups(found: Iterable[Weight], optimizer: OptimizerName) -> list[list[Weight]]:
    """Return the trained parameters of each of the optimizer's groups: those of Muon, other matrices, all others."""
    groups: dict[tuple[bool, bool], list[Weight]] = {(True, True): [], (False, True): [], (False, False): []}
    for weight in found:
        if weight.is_trained:
            groups[has_one_moment(weight, optimizer), weight.is_matrix].append(weight)
    return [group for group in groups.values() if group]


def num_moments(found: Iterable[Weight], optimizer: OptimizerName) -> int:
    """Return the elements of the optimizer's moments: two for each trained element, of Muon's matrices one."""
    return sum((1 if has_one_moment(each, optimizer) else 2) * each.numel for each in found if each.is_trained)


def has_one_moment(weight: Weight, optimizer: OptimizerName) -> bool:
    """Return whether the optimizer trains this weight by Muon, which keeps the mean of its gradients alone."""
    return optimizer == "muon" and weight.is_matrix and is_in_a_block(weight.name)


def _block(config: ModelConfig, prefix: str) -> Iterator[Weight]:
    layers = {layer.name: layer for layer in linear_layers(config)}
    yield from _norm(config, f"{prefix}attention_norm", config.hidden_dim)
    yield from _linear(config, prefix, layers["attention.qkv"])
    if config.query_key_norm:
        for name in ("query_norm", "key_norm"):
            yield Weight(f"{prefix}attention.{name}.weight", "norms", (config.width_per_head,))
    yield from _linear(config, prefix, layers["attention.projection"])
    yield from _norm(config, f"{prefix}mlp_norm", config.hidden_dim)
    for name in ("mlp.up", "mlp.gate_up", "mlp.down"):
        if name in layers:
            yield from _linear(config, prefix, layers[name])


def _norm(config: ModelConfig, name: str, width: int) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", "norms", (width,))
    if config.family == "gpt2":
        yield Weight(f"{name}.bias", "norms", (width,))


def _linear(config: ModelConfig, prefix: str, layer: LinearLayer) -> Iterator[Weight]:
    yield Weight(f"{prefix}{layer.name}.weight", layer.part, (layer.num_outputs, layer.num_inputs), is_matrix=True)
    if layer.has_bias:
        yield Weight(f"{prefix}{layer.name}.bias", layer.part, (layer.num_outputs,))
    for name, outputs in layer.adapted:
        assert config.lora is not None
        path, rank = f"{prefix}{layer.name}.adapter.{name}", config.lora.rank
        yield Weight(f"{path}_a", "adapters", (rank, layer.num_inputs), is_matrix=True)
        yield Weight(f"{path}_b", "adapters", (outputs, rank), is_matrix=True)


def _frozen_unless_adapter(weight: Weight) -> Weight:
    is_trained = weight.part in ("adapters", "classifier")
    return Weight(weight.name, weight.part, weight.shape, is_trained, weight.is_matrix)
