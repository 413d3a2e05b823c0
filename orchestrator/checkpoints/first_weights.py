"""The weights before the first step: made from the seed, or read from the model that the training continues."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from modules.huggingface.folder import read_config
from modules.huggingface.weights import Range, Weights
from modules.initial_values import SCORE, initial_values
from modules.model_config import ModelConfig
from orchestrator.artifacts.model_folders import find_model
from orchestrator.checkpoints.parts import Shapes
from orchestrator.distributed.training_state import MASTER, Fragment, StateReader


def first_weights(shapes: Shapes, model: ModelConfig, vocab_size: int, seed: int) -> StateReader:
    """Return the state before the first step, of which every worker reads the ranges that it holds.

    Raises:
        UserError, InputError: the model to continue is not where it was, or is another one.
    """
    if model.path is None:
        return InitialWeights(shapes, model, vocab_size, seed)
    return BaseWeights(shapes, model, vocab_size, seed)


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
    """

    def __init__(self, shapes: Shapes, model: ModelConfig, vocab_size: int, seed: int) -> None:
        assert model.path is not None
        found = find_model(model.path, model.revision)
        stored = read_config(found.folder)
        self._begins_score = model.classifier is not None and model.classifier != stored.classifier
        self._weights = Weights(found.folder, stored, vocab_size, reads_head=not self._begins_score)
        self._num_readers = found.num_readers
        self._initial = InitialWeights(shapes, model, vocab_size, seed)

    def fill(self, wanted: Iterable[Fragment]) -> None:
        """Copy the weights that the fragments name into their views."""
        self._weights.fill(self._stored(wanted), self._num_readers)

    def _stored(self, wanted: Iterable[Fragment]) -> Iterator[Range]:
        """Yield the ranges that are read, and fill those of a score that begins anew."""
        for item in wanted:
            if self._begins_score and item.parameter == SCORE:
                self._initial.fill([item])
            else:
                yield Range(item.parameter, item.start, item.stop, item.view.detach().view(-1))
