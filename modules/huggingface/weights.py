"""Weights of a model folder, read by ranges: beside the tensors that are filled, blocks alone are in memory."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from modules.errors import InputError
from modules.huggingface.folder import (
    HEAD_TENSORS,
    ModelFolder,
    full_name,
    holds_no_weights,
    read_config,
    stored,
    weight_files,
)
from modules.huggingface.safetensors_header import StoredTensor, read_header
from modules.initial_values import HEADS, VOCABULARY
from modules.lora import is_trained
from modules.model import GPT
from modules.model_config import ModelConfig

_BLOCK_BYTES = 16 * 2**20
_thread = threading.local()


class Range(NamedTuple):
    """Elements [start, stop) of one of our parameters, to be copied into a flat view of any dtype."""

    parameter: str
    start: int
    stop: int
    view: Tensor


class _Piece(NamedTuple):
    """A stored tensor that holds elements [start, stop) of one of our parameters."""

    tensor: StoredTensor
    start: int
    stop: int
    is_transposed: bool


class Weights:
    """Our parameters as ranges of the tensors in a folder's safetensors files.

    Args:
        folder: The files.
        config: The shape that config.json describes, with its vocabulary size.
        vocab_size: Number of tokens, if it is larger. A row that the files lack becomes the mean of those that they
            have, so that a new token takes no more than 1 / V of the probability (Hewitt 2021, "Initializing New Word
            Embeddings for Pretrained Language Models").
        reads_head: Whether an output head of its own or the score of a classifier is read. Otherwise it has no such
            parameter, whatever the files have.

    Raises:
        InputError: A file or tensor is missing, unreadable, of another shape, or has no place in this model.
    """

    def __init__(
        self, folder: ModelFolder, config: ModelConfig, vocab_size: int | None = None, *, reads_head: bool = True
    ) -> None:
        assert config.vocab_size is not None
        self._folder, self._config, self._num_stored_rows = folder, config, config.vocab_size
        self.vocab_size = max(config.vocab_size, vocab_size or 0)
        shapes = parameter_shapes(config, self.vocab_size)
        self.shapes = {name: shape for name, shape in shapes.items() if reads_head or name not in HEADS}
        self._unread = (
            HEAD_TENSORS if not reads_head else HEAD_TENSORS[:1] if config.tie_embeddings or config.classifier else ()
        )
        self._tensors = self._find_tensors()
        self._pieces = {name: list(self._find_pieces(name)) for name in self.shapes}
        self._check_nothing_is_left()
        self._means: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def fill(self, wanted: Iterable[Range], num_readers: int = 1) -> None:
        """Copy the ranges into their views, several blocks at a time.

        Raises:
            InputError: A file ends too early.
        """
        with ThreadPoolExecutor(num_readers) as pool, torch.no_grad():
            for _ in pool.map(lambda copy: copy(), [copy for item in wanted for copy in self._copies(item)]):
                pass

    def _find_tensors(self) -> dict[str, StoredTensor]:
        """Return the tensors of all files by their whole names, a tied one under both of its names."""
        found: dict[str, StoredTensor] = {}
        for file in weight_files(self._folder):
            tensors, metadata = read_header(self._folder, file)
            named = {full_name(self._config, name): tensor for name, tensor in tensors.items()}
            # safetensors keeps one of several names of the same tensor, and notes the others in its metadata
            kept = {full_name(self._config, other): full_name(self._config, name) for other, name in metadata.items()}
            found |= {other: named[name] for other, name in kept.items() if name in named} | named
        if self._config.tie_embeddings:
            names = [stored(self._config, name, self._num_stored_rows).tensors[0][0] for name in VOCABULARY]
            held = [found[name] for name in names if name in found]
            found |= {name: found.get(name, held[0]) for name in names if held}
        return found

    def _find_pieces(self, parameter: str) -> Iterator[_Piece]:
        shape = self.shapes[parameter]
        num_rows = self._num_stored_rows if parameter in VOCABULARY else shape[0]
        where = stored(self._config, parameter, num_rows)
        start, row_size = 0, math.prod(shape[1:])
        for name, count in where.tensors:
            if name not in self._tensors:
                raise InputError(f"{name}: not among the weights; the folder is incomplete or of another model")
            tensor, expected = self._tensors[name], (count, *shape[1:])
            expected = expected[::-1] if where.is_transposed else expected
            if tensor.shape != expected:
                raise InputError(
                    f"{name}: the file has shape {list(tensor.shape)}, but config.json requires {list(expected)}"
                )
            yield _Piece(tensor, start, start + count * row_size, where.is_transposed)
            start += count * row_size

    def _check_nothing_is_left(self) -> None:
        used = {piece.tensor for pieces in self._pieces.values() for piece in pieces}
        for name, tensor in self._tensors.items():
            is_unread = name.startswith(self._unread) or holds_no_weights(self._config, name)
            if tensor not in used and not is_unread:
                raise InputError(
                    f"{name}: among the weights, but the model of config.json has no place for it; "
                    "it is a variant that is not computed here"
                )

    def _copies(self, wanted: Range) -> Iterator[Callable[[], None]]:
        """Yield the steps that fill a range, each of at most a block, to be taken in any order."""
        for piece in self._pieces[wanted.parameter]:
            start, stop = max(piece.start, wanted.start), min(piece.stop, wanted.stop)
            if start >= stop:
                continue
            view = wanted.view[start - wanted.start : stop - wanted.start]
            first, last = start - piece.start, stop - piece.start
            if piece.is_transposed:
                yield partial(self._copy_transposed, piece.tensor, first, last, view)
                continue
            step = _BLOCK_BYTES // piece.tensor.dtype.itemsize
            for begin in range(first, last, step):
                end = min(begin + step, last)
                yield partial(self._copy, piece.tensor, begin, end, view[begin - first : end - first])
        if wanted.parameter in VOCABULARY:
            yield partial(self._fill_new_rows, wanted)

    def _copy(self, tensor: StoredTensor, start: int, stop: int, view: Tensor) -> None:
        view.copy_(self._read(tensor, start, stop))

    def _copy_transposed(self, tensor: StoredTensor, start: int, stop: int, view: Tensor) -> None:
        """Copy elements [start, stop) of the transpose of a stored matrix."""
        num_columns, num_rows = tensor.shape
        first, last = start // num_columns, -(-stop // num_columns)
        rows = torch.empty(last - first, num_columns, dtype=tensor.dtype)
        step = max(1, _BLOCK_BYTES // tensor.dtype.itemsize // num_rows)
        for begin in range(0, num_columns, step):
            end = min(begin + step, num_columns)
            block = self._read(tensor, begin * num_rows, end * num_rows).view(-1, num_rows)
            rows[:, begin:end] = block[:, first:last].t()
        view.copy_(rows.flatten()[start - first * num_columns : stop - first * num_columns])

    def _read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) in this thread's buffer, which its next call overwrites."""
        num_bytes = (stop - start) * tensor.dtype.itemsize
        if len(getattr(_thread, "buffer", b"")) < num_bytes:
            _thread.buffer = bytearray(num_bytes)
        self._folder.read_into(
            tensor.file, tensor.start + start * tensor.dtype.itemsize, memoryview(_thread.buffer)[:num_bytes]
        )
        return torch.frombuffer(_thread.buffer, dtype=tensor.dtype, count=stop - start)

    def _fill_new_rows(self, wanted: Range) -> None:
        """Fill what lies behind the stored rows: new tokens by the mean, padding by 0."""
        (width,) = self.shapes[wanted.parameter][1:]
        first_new = max(self._num_stored_rows * width, wanted.start)
        first_padding = min(max(self.vocab_size * width, wanted.start), wanted.stop)
        wanted.view[first_padding - wanted.start :] = 0
        if first_new < first_padding:
            columns = torch.arange(first_new, first_padding) % width
            view = wanted.view[first_new - wanted.start : first_padding - wanted.start]
            view.copy_(self._mean(wanted.parameter)[columns])

    def _mean(self, parameter: str) -> Tensor:
        """Return the mean of the stored rows, float32 [D], summed in one order whoever asks."""
        with self._lock:
            if parameter not in self._means:
                (piece,) = self._pieces[parameter]
                width = piece.tensor.shape[1]
                total = torch.zeros(width, dtype=torch.float64)
                step = max(1, _BLOCK_BYTES // 8 // width) * width
                for begin in range(0, piece.stop, step):
                    rows = self._read(piece.tensor, begin, min(begin + step, piece.stop)).view(-1, width)
                    total += rows.double().sum(0)
                self._means[parameter] = (total / self._num_stored_rows).float()
            return self._means[parameter]


def parameter_shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of our parameters, by name; a tied head is not among them."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in GPT(config, vocab_size).named_parameters()}


def trained_shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that a training of this model changes, which are all without adapters."""
    shapes = parameter_shapes(config, vocab_size)
    return {name: shape for name, shape in shapes.items() if config.lora is None or is_trained(name)}


def num_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Return the number of a model's weights, without the padding of its vocabulary."""
    shapes = parameter_shapes(config, vocab_size).items()
    return sum(math.prod((vocab_size, *shape[1:]) if name in VOCABULARY else shape) for name, shape in shapes)


def load_huggingface(
    folder: ModelFolder, device: torch.device | str = "cpu", num_readers: int = 1, vocab_size: int | None = None
) -> GPT:
    """Return a float32 model with the weights of a Hugging Face folder.

    Args:
        folder: The files.
        device: Where the model is made.
        num_readers: Requests at a time.
        vocab_size: Number of tokens, if it is larger than the model's; see `Weights`.

    Raises:
        InputError: A file or tensor is missing, unreadable or of another shape; the message names it.
    """
    config = read_config(folder)
    weights = Weights(folder, config, vocab_size)
    with torch.device(device):
        model = GPT(config, weights.vocab_size)
    parameters = model.named_parameters()
    weights.fill((Range(name, 0, p.numel(), p.detach().view(-1)) for name, p in parameters), num_readers)
    return model
