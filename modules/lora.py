"""Adapters of low rank beside frozen linear layers (Hu et al. 2021, "LoRA", arXiv 2106.09685), and what goes with them.

Our products of queries, keys and values, and of gate and up, are one layer each where `transformers` has three and two.
An adapter of such a layer has parts, one for each adapted layer of `transformers`, and each with weights of its own.

Shapes: I inputs, O outputs, R rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.errors import InputError
from modules.huggingface.folder import stored
from modules.layers import Linear
from modules.linear import linear
from modules.model_config import ALL_LINEAR, LoraConfig, ModelConfig, ends_with
from modules.token_rows import TrainedRows

_LAYERS = {
    "gpt2": ("attention.qkv", "attention.projection", "mlp.up", "mlp.down"),
    "llama": ("attention.qkv", "attention.projection", "mlp.gate_up", "mlp.down"),
}
_INPUT, _OUTPUT = "_a", "_b"
"""Ends of the names of an adapter's two weights, A and B."""
_ADAPTER = ".adapter."
_VOCABULARY = ("token_embedding", "head")
_ROWS = ".trained_rows"
"""Ends the names of rows of the vocabulary that are trained."""
_OTHER_TRAINED = ("score.",)
"""Begins the names of what else is trained beside adapters."""


class Part(NamedTuple):
    """Rows [start, stop) of a linear layer of ours, which are a layer of its own in `transformers`."""

    path: str
    """The layer's name there, such as `model.layers.0.self_attn.q_proj`."""
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The last word of its path, by which users know it."""
        return self.path.rpartition(".")[2]


class LowRank(nn.Module):
    """What an adapter adds to the outputs of a linear layer: `scale * B A dropout(x)` for the rows of each part.

    The weights are this module's own, not those of modules within it, so that ZeRO-3 gathers them for its `forward`.
    All parts are computed together, as two products: the first with their A below one another, the second with their B
    along a diagonal, where the rows of what is not adapted are empty.
    """

    def __init__(self, num_inputs: int, parts: Sequence[Part], adapted: Sequence[Part], config: LoraConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        for part in adapted:
            self.register_parameter(part.name + _INPUT, nn.Parameter(torch.empty(config.rank, num_inputs)))
            self.register_parameter(part.name + _OUTPUT, nn.Parameter(torch.empty(part.stop - part.start, config.rank)))
        self._rows = [(part.name if part in adapted else None, part.stop - part.start) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., O] for x [..., I]."""
        names = [name for name, _ in self._rows if name is not None]
        a = torch.cat([self.get_parameter(name + _INPUT) for name in names])
        hidden = linear(self.dropout(x), a, None) * self.scale
        b = [
            a.new_empty(count, 0) if name is None else self.get_parameter(name + _OUTPUT) for name, count in self._rows
        ]
        return linear(hidden, torch.block_diag(*b), None)


def add_adapters(model: nn.Module, config: ModelConfig, lora: LoraConfig) -> None:
    """Add adapters to a model's blocks, uninitialised, and freeze everything that is not trained with them.

    Raises:
        InputError: `lora.target_layers` holds a name that no layer of the family has.
    """
    check_target_layers(config, lora)
    for name, layer in list(model.named_modules()):
        if name.startswith("blocks.") and isinstance(layer, Linear):
            parts = parts_of(config, name, layer.out_features)
            adapted = [part for part in parts if lora.adapts(part.path)]
            if adapted:
                layer.adapter = LowRank(layer.in_features, parts, adapted, lora)
    if lora.trained_tokens:
        _train_rows(model, config, lora.trained_tokens)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))


def _train_rows(model: nn.Module, config: ModelConfig, tokens: Sequence[int]) -> None:
    """Give the vocabulary rows of these tokens that are trained; tied weights share them."""
    rows: nn.Parameter | None = None
    for name, layer in model.named_modules():
        if name in _VOCABULARY and isinstance(layer, TrainedRows):
            if rows is None or not config.tie_embeddings:
                rows = nn.Parameter(torch.empty(len(tokens), config.hidden_dim))
            layer.train_rows(tokens, rows)


def is_trained(name: str) -> bool:
    """Return whether a parameter of a model with adapters is trained."""
    return is_adapter(name) or name.endswith(_ROWS) or name.startswith(_OTHER_TRAINED)


def is_adapter(name: str) -> bool:
    """Return whether a parameter is one of an adapter's two weights."""
    return _ADAPTER in name


def begins_at_zero(name: str) -> bool:
    """Return whether a parameter of an adapter is its B, with which it adds nothing before the first step."""
    return name.endswith(_OUTPUT)


def parts_of(config: ModelConfig, layer: str, num_rows: int) -> list[Part]:
    """Return the parts of one of our linear layers, such as `blocks.0.attention.qkv`, which cover its rows."""
    parts, start = [], 0
    for tensor, count in stored(config, f"{layer}.weight", num_rows).tensors:
        parts.append(Part(tensor.removesuffix(".weight"), start, start + count))
        start += count
    return parts


def check_target_layers(config: ModelConfig, lora: LoraConfig) -> None:
    """Raise InputError if a name among the target layers is that of no layer of this model."""
    parts = list(_all_parts(config))
    for target in lora.target_layers:
        if target != ALL_LINEAR and not any(ends_with(part.path, target) for part in parts):
            known = ", ".join(dict.fromkeys(part.name for part in parts))
            raise InputError(
                f"model.lora.target_layers={target}: this model has no linear layer of that name; there are {known}, "
                f"and {ALL_LINEAR} for all"
            )


def adapted_names(config: ModelConfig, lora: LoraConfig) -> list[str]:
    """Return the names in `transformers` of the layers that are adapted, from which PEFT finds the same ones."""
    if ALL_LINEAR not in lora.target_layers:
        return list(lora.target_layers)
    return list(dict.fromkeys(part.name for part in _all_parts(config)))


def _all_parts(config: ModelConfig) -> Iterator[Part]:
    for number in range(config.num_layers):
        for layer in _LAYERS[config.family]:
            yield from parts_of(config, f"blocks.{number}.{layer}", 2)


def weights_of(layer: str, part: Part) -> tuple[str, str]:
    """Return the names of a part's A [R, I] and B [O, R], if it is adapted."""
    return f"{layer}{_ADAPTER}{part.name}{_INPUT}", f"{layer}{_ADAPTER}{part.name}{_OUTPUT}"


def trained_rows_of(vocabulary: str) -> str:
    """Return the name of the trained rows of `token_embedding.weight` or `head.weight`."""
    return vocabulary.removesuffix(".weight") + _ROWS


def vocabulary_of(rows: str) -> str | None:
    """Return the name of the weight that has these trained rows; None if it is the name of something else."""
    return rows.removesuffix(_ROWS) + ".weight" if rows.endswith(_ROWS) else None


def trained_beside(config: ModelConfig, name: str, num_rows: int) -> list[str]:
    """Return the names of what may have been trained of a frozen parameter: adapters of its parts, rows of tokens."""
    adapters = (other for pair in _adapters_beside(config, name, num_rows).values() for other in pair)
    return [trained_rows_of(name), *adapters]


def _adapters_beside(config: ModelConfig, name: str, num_rows: int) -> dict[Part, tuple[str, str]]:
    """Return the names of the weights that an adapter of each part of a parameter has; none outside of the blocks."""
    layer = name.removesuffix(".weight")
    if layer == name or not name.startswith("blocks."):
        return {}
    return {part: weights_of(layer, part) for part in parts_of(config, layer, num_rows)}


def merge(
    config: ModelConfig, name: str, weight: Tensor, trained: Mapping[str, Tensor], scale: float, tokens: Sequence[int]
) -> None:
    """Make a frozen parameter, in place, what it computes with what was trained beside it.

    Args:
        name: The parameter's.
        weight: Its float32 values in their shape.
        trained: What was trained, by its own name or those of `trained_beside`; float32.
        scale: What the product of an adapter's weights is multiplied by.
        tokens: Those of the trained rows.
    """
    if name in trained:
        weight[: len(trained[name])] = trained[name]
    for part, names in _adapters_beside(config, name, len(weight)).items():
        a, b = map(trained.get, names)
        if a is not None and b is not None:
            weight[part.start : part.stop] += b @ a * scale
    rows = trained.get(trained_rows_of(name))
    if rows is not None:
        weight[list(tokens)] = rows
