"""Batches that another thread makes while a step is computed, ready to be copied to a device at once."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from modules.data.batches import Batch

T = TypeVar("T")
DEPTH = 8
"""Batches that are made before they are asked for: some may wait for a store while others are ready."""
_ROUND = DEPTH // 2
"""Batches that are made in a row: to wake the other thread takes as long as to make a small batch."""
_ALIGNMENT = 16


class MadeAhead(Iterable[T]):
    """The items of an iterable, changed by `prepare`, made in order by one thread while the last one is used.

    An item that is ready is taken off a deque as it is: a queue that can be waited for, or an object around each item,
    takes a third longer.
    """

    def __init__(self, items: Iterable[Any], prepare: Callable[[Any], T]) -> None:
        self._items, self._prepare = items, prepare

    def __iter__(self) -> Iterator[T]:
        wanted: SimpleQueue[int] = SimpleQueue()
        made, is_over = _Made[T](), threading.Event()
        makes = (iter(self._items), wanted, made, is_over)
        thread = threading.Thread(target=self._make, args=makes, name="batches", daemon=True)
        wanted.put(DEPTH)
        thread.start()
        ready = made.items
        try:
            while True:
                for _ in range(_ROUND):
                    if not ready and not made.wait():
                        return
                    yield ready.popleft()
                wanted.put(_ROUND)
        finally:
            is_over.set()
            wanted.put(0)
            thread.join()

    def _make(
        self, items: Iterator[Any], wanted: "SimpleQueue[int]", made: "_Made[T]", is_over: threading.Event
    ) -> None:
        try:
            while num_wanted := wanted.get():
                for item in islice(items, num_wanted):
                    made.add(self._prepare(item))
                    num_wanted -= 1
                    if is_over.is_set():
                        return
                if num_wanted:
                    made.end()
                    return
        except BaseException as error:  # the thread that asks raises it
            made.end(error)


class _Made(Generic[T]):
    """What one thread has made and another one takes."""

    def __init__(self) -> None:
        self.items: deque[T] = deque()
        self._has_changed, self._is_complete = threading.Event(), False
        self._error: BaseException | None = None

    def add(self, item: T) -> None:
        """Add an item behind the others."""
        self.items.append(item)
        self._has_changed.set()

    def end(self, error: BaseException | None = None) -> None:
        """Say that there are no others, or why."""
        self._error, self._is_complete = error, True
        self._has_changed.set()

    def wait(self) -> bool:
        """Wait for an item, and return whether there is one; raise the error by which they have ended."""
        while True:
            self._has_changed.clear()
            is_complete = self._is_complete  # before the items are looked at, of which the last may come just now
            if self.items:
                return True
            if is_complete:
                break
            self._has_changed.wait()
        if self._error is not None:
            raise self._error
        return False


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
