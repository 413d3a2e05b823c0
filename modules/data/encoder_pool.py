"""Tokenising in several processes."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from modules.data.encoding import Encoded, Passage, TextEncoder
from modules.data.worker_pool import WorkerPool

Tag = TypeVar("Tag")


class EncoderPool:
    """Tokenises batches of passages in `num_processes` processes; with one, in this process."""

    def __init__(self, tokenizer_path: Path, dtype: np.dtype, num_processes: int):
        def here() -> Callable[[Any], Any]:
            return TextEncoder(tokenizer_path.read_text(encoding="utf-8"), dtype).encode

        arguments = [str(tokenizer_path), dtype.name]
        program = "from modules.data.encoder_process import main; main()"
        self._pool = WorkerPool(program, arguments, here, num_processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def encode(self, batches: Iterable[tuple[list[Passage], Tag]]) -> Iterator[tuple[Encoded, Tag]]:
        """Tokenises each batch of passages and gives it back with its tag, in order.

        Raises:
            CannotEncodeError: A text holds what the tokenizer has no token for.
            RuntimeError: A tokenising process died.
        """
        yield from self._pool.answers(batches)
