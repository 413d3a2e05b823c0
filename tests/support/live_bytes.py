"""The bytes of all tensors that live, counted as they are made and freed."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make within it, but those of the tensors that are given."""

    def __init__(self, others: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in others}
        self.now = self.most = 0

    def begin_anew(self) -> int:
        """Return the bytes that live now, and count the most of them from here."""
        self.most = self.now
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.finalize(storage, self._freed, key, size)
            self.now += size
            self.most = max(self.most, self.now)

    def _freed(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size
