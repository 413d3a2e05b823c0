"""Files of numbers, and the interface through which prepared data reads them, wherever they are."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Numbers(Protocol):
    """Numbers of one type that are read in parts; an array is one kind."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> np.ndarray:
        """Return the numbers `[where.start, where.stop)`."""
        ...

    def searchsorted(self, v: Any, /, side: Any = "left") -> Any:
        """Return where `v` belongs among ascending numbers, as `numpy.ndarray.searchsorted` does."""
        ...


class NumberFiles(Protocol):
    """The files of one prepared data set."""

    def open(self, name: str, dtype: np.dtype) -> Numbers:
        """Return the numbers in a file; of them nothing is read yet."""
        ...

    def plan(self, reader: object, parts: Iterable[tuple[Numbers, int, int]]) -> None:
        """Take note of the ranges that are read next, in their order, so that they are fetched from a store beforehand.

        Args:
            reader: Who reads them; its plan before is forgotten.
            parts: Numbers that this object has opened, and where a range of them begins and ends.
        """
        ...


class MappedFiles:
    """Files in a local folder, memory-mapped; the caller has verified or written them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str, dtype: np.dtype) -> np.ndarray:
        path = self._folder / name
        if path.stat().st_size == 0:
            return np.empty(0, dtype=dtype)
        # viewed as a plain array, because slicing np.memmap itself costs microseconds of bookkeeping
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)

    def plan(self, reader: object, parts: Iterable[tuple[Numbers, int, int]]) -> None:
        """Nothing has to be fetched."""
