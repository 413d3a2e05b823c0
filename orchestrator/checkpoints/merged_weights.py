"""The weights of a model with its adapters merged into them, tensor by tensor, outside of training."""

from collections.abc import Iterable

import torch
from torch import Tensor

from modules.huggingface.weights import parameter_shapes
from modules.lora import merge, trained_beside
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
        self._base, self._trained, self._shapes = base, trained, shapes
        self._model, self._lora = model, model.lora
        self._merged_shapes = parameter_shapes(model.without_adapters, vocab_size)

    def fill(self, wanted: Iterable[Fragment]) -> None:
        """Copy merged parameters, each as a whole, into their views."""
        items = list(wanted)
        # of all of them at once, because one chunk of a checkpoint holds many adapters
        trained = self._trained_beside(items)
        for item in items:
            if item.parameter in self._shapes:
                self._trained.fill([item])
            else:
                item.view.copy_(self._merged(item.parameter, trained).view(-1))

    def _merged(self, name: str, trained: dict[str, Tensor]) -> Tensor:
        weight = torch.empty(self._merged_shapes[name])
        self._base.fill([Fragment(name, MASTER, 0, weight.numel(), weight.view(-1))])
        merge(self._model, name, weight, trained, self._lora.scale, self._lora.trained_tokens)
        return weight

    def _trained_beside(self, items: Iterable[Fragment]) -> dict[str, Tensor]:
        """Return all that was trained beside these parameters, by name."""
        names = [
            other
            for item in items
            for other in trained_beside(self._model, item.parameter, self._merged_shapes[item.parameter][0])
            if other in self._shapes
        ]
        held = {name: torch.empty(self._shapes[name]) for name in names}
        self._trained.fill(Fragment(name, MASTER, 0, values.numel(), values.view(-1)) for name, values in held.items())
        return held
