"""The weights before the first step: made from the seed, or read from the model that the training continues.

Frozen ones are never anything else, so they are read from there at every start.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from modules.huggingface.folder import read_config
from modules.huggingface.weights import Range, Weights
from modules.initial_values import SCORE, initial_values
from modules.lora import vocabulary_of
from modules.model_config import ModelConfig
from orchestrator.artifacts.model_folders import find_model
from orchestrator.checkpoints.parts import Shapes
from orchestrator.distributed.training_state import MASTER, Fragment, StateReader


def first_weights(shapes: Shapes, model: ModelConfig, vocab_size: int, seed: int) -> StateReader:
    """Return the state before the first step, of which every worker reads the ranges that it holds.

    Raises:
        UserError, InputError: the model to continue is not where it was, or is another one.
    """
    made = InitialWeights(shapes, model, vocab_size, seed)
    return made if model.path is None else BaseWeights(model, vocab_size, made)


@dataclass(frozen=True)
class InitialWeights:
    """Weights made from the seed; see `initial_values`."""

    shapes: Shapes
    model: ModelConfig
    vocab_size: int
    seed: int

    def fill(self, wanted: Iterable[Fragment]) -> None:
        """Copy the initial weights that the fragments name into their views."""
        for fragment in wanted:
            fragment.view.copy_(self._values(fragment))

    def _values(self, fragment: Fragment) -> Tensor:
        assert fragment.kind == MASTER, "an optimizer without steps has no moments"
        shape = tuple(self.shapes[fragment.parameter])
        where = (fragment.parameter, shape, fragment.start, fragment.stop)
        return initial_values(*where, self.seed, self.model, self.vocab_size)


class BaseWeights:
    """Weights of a published model or of a run of ours, read by ranges from where they lie.

    The score of a classifier that the model is not yet, or with other labels, is made from the seed.

    Args:
        model: The model that is trained.
        vocab_size: Number of tokens.
        made: Makes what the other model has not, such as adapters; None if nothing else is requested.
    """

    def __init__(self, model: ModelConfig, vocab_size: int, made: StateReader | None = None) -> None:
        assert model.path is not None
        self._made, self._lora = made, model.lora
        found = find_model(model.path, model.revision)
        stored = read_config(found.folder)
        self._begins_score = model.classifier is not None and model.classifier != stored.classifier
        self._weights = Weights(found.folder, stored, vocab_size, reads_head=not self._begins_score)
        self._num_readers = found.num_readers

    def fill(self, wanted: Iterable[Fragment]) -> None:
        """Copy the weights that the fragments name into their views."""
        held: list[Range] = []
        others: list[Fragment] = []
        for item in wanted:
            found = list(self._ranges(item))
            held += found
            if not found:
                others.append(item)
        if others:
            assert self._made is not None, f"{others[0].parameter} is not in the model at model.path"
            self._made.fill(others)
        self._weights.fill(held, self._num_readers)

    def _ranges(self, item: Fragment) -> Iterator[Range]:
        """Yield the ranges of the model's parameters that a fragment begins with; none if it has no such parameter."""
        shapes, view = self._weights.shapes, item.view.detach().view(-1)
        if self._begins_score and item.parameter == SCORE:
            return
        if item.parameter in shapes:
            yield Range(item.parameter, item.start, item.stop, view)
            return
        vocabulary = vocabulary_of(item.parameter)
        if vocabulary is None or self._lora is None:
            return
        (width,) = shapes[vocabulary][1:]
        for index, token in enumerate(self._lora.trained_tokens):
            start, stop = max(item.start, index * width), min(item.stop, (index + 1) * width)
            if start < stop:
                first = (token - index) * width
                yield Range(vocabulary, first + start, first + stop, view[start - item.start : stop - item.start])
