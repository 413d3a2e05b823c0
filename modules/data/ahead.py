"""Batches that another thread makes while a step is computed, ready to be copied to a device at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from modules.data.batches import Batch

T = TypeVar("T")
DEPTH = 2
"""Batches that are made before they are asked for: one may wait for a store while another is ready."""
_ALIGNMENT = 16


class MadeAhead(Iterable[T]):
    """The items of an iterable, changed by `prepare`, made in order by one thread while the last one is used."""

    def __init__(self, items: Iterable[Any], prepare: Callable[[Any], T]) -> None:
        self._items, self._prepare = items, prepare

    def __iter__(self) -> Iterator[T]:
        items = iter(self._items)
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            waiting = deque(thread.submit(self._next, items) for _ in range(DEPTH))
            try:
                while (found := waiting.popleft().result()) is not None:
                    waiting.append(thread.submit(self._next, items))
                    yield found[0]
            finally:
                for future in waiting:
                    future.cancel()

    def _next(self, items: Iterator[Any]) -> tuple[T] | None:
        for item in items:
            return (self._prepare(item),)
        return None


class Packed(NamedTuple):
    """A batch whose tensors lie in one piece of memory, so that one copy takes it to a device."""

    memory: Tensor
    """uint8 [bytes], page-locked if that was asked for: only then the copy is made while this process goes on."""
    tensors: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]
    """By name: first byte, type, shape."""
    others: dict[str, Any]

    @classmethod
    def of(cls, batch: Batch, *, pinned: bool) -> "Packed":
        """Return a batch's tensors and its other values together."""
        found = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        tensors, size = {}, 0
        for name, value in found.items():
            tensors[name] = size, value.dtype, tuple(value.shape)
            size += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        packed = cls(memory, tensors, {name: value for name, value in batch.items() if name not in found})
        for name, view in packed._views(memory).items():
            view.copy_(found[name])
        return packed

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; the copy may still be under way there."""
        return {**self._views(self.memory.to(device, non_blocking=True)), **self.others}

    def _views(self, memory: Tensor) -> dict[str, Tensor]:
        return {name: _view(memory, *place) for name, place in self.tensors.items()}


def _view(memory: Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    num_bytes = dtype.itemsize * torch.Size(shape).numel()
    return memory[start : start + num_bytes].view(dtype).view(shape)
