"""The weights of a model with its adapters merged into them, tensor by tensor, outside of training."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from modules.huggingface.weights import parameter_shapes
from modules.lora import Part, merge, parts_of, weights_of
from modules.model_config import ModelConfig
from orchestrator.checkpoints.parts import Shapes
from orchestrator.distributed.training_state import MASTER, Fragment, StateReader


class MergedWeights:
    """Whole parameters of the model without adapters: computed in float32, and rounded once to the type of their view.

    Args:
        base: The frozen weights.
        trained: Adapters, and everything else that was trained.
        shapes: Of what `trained` holds.
        model: With its adapters.
    """

    def __init__(
        self, base: StateReader, trained: StateReader, shapes: Shapes, model: ModelConfig, vocab_size: int
    ) -> None:
        assert model.lora is not None
        self._base, self._trained, self._shapes, self._model = base, trained, shapes, model
        self._scale = model.lora.alpha / model.lora.rank
        self._merged_shapes = parameter_shapes(model.without_adapters, vocab_size)

    def fill(self, wanted: Iterable[Fragment]) -> None:
        """Copy merged parameters, each as a whole, into their views."""
        items = list(wanted)
        # those of all tensors at once, because one chunk of a checkpoint holds many of them
        adapters = self._adapters_beside([item.parameter for item in items])
        for item in items:
            if item.parameter in self._shapes:
                self._trained.fill([item])
            else:
                item.view.copy_(self._merged(item.parameter, adapters).view(-1))

    def _merged(self, name: str, adapters: dict[str, Tensor]) -> Tensor:
        weight = torch.empty(self._merged_shapes[name])
        self._base.fill([Fragment(name, MASTER, 0, weight.numel(), weight.view(-1))])
        for layer, part in self._parts(name):
            a, b = (adapters[other] for other in weights_of(layer, part))
            merge(weight, part, a, b, self._scale)
        return weight

    def _adapters_beside(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the weights of the adapters of these parameters, by name."""
        beside = [other for name in names for layer, part in self._parts(name) for other in weights_of(layer, part)]
        held = {name: torch.empty(self._shapes[name]) for name in beside}
        self._trained.fill(Fragment(name, MASTER, 0, values.numel(), values.view(-1)) for name, values in held.items())
        return held

    def _parts(self, name: str) -> Iterator[tuple[str, Part]]:
        """Yield a parameter's layer, with each part of it that is adapted."""
        layer = name.removesuffix(".weight")
        if layer == name:
            return
        for part in parts_of(self._model, layer, self._merged_shapes[name][0]):
            if weights_of(layer, part)[0] in self._shapes:
                yield layer, part
