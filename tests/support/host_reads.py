"""Count how often the host waits for values of a device, although these tests have no device but the CPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS_BY_OPERATOR = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
"""`bool`, `int`, `item` and `if`, and operators whose result's shape depends on values."""
_READS_BY_METHOD = ("tolist", "cpu", "numpy")


class HostReads(TorchDispatchMode):
    """The number of reads so far."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += operator.name().partition(".")[0] in _READS_BY_OPERATOR
        return operator(*args, **(kwargs or {}))


@contextmanager
def host_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostReads]:
    """Yield a counter of this thread's reads within; `x.cpu().numpy()` and `x.cpu().tolist()` are one."""
    reads, thread = HostReads(), threading.get_ident()

    def counted(name: str) -> Any:
        method = getattr(torch.Tensor, name)

        def call(tensor: torch.Tensor, *args: Any) -> Any:
            if threading.get_ident() == thread:
                reads.number += name == "cpu" or not hasattr(tensor, "came_from_device")
            result = method(tensor, *args)
            if name == "cpu":
                result.came_from_device = True
            return result

        return call

    with monkeypatch.context() as patch, reads:
        for name in _READS_BY_METHOD:
            patch.setattr(torch.Tensor, name, counted(name))
        yield reads
