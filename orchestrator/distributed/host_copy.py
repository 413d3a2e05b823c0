"""Small tensors on their way from the device to this process's memory."""

import torch
from torch import Tensor


class HostCopy:
    """A copy of a vector's values that the device makes when it has computed them; nobody waits before `values`."""

    def __init__(self, values: Tensor) -> None:
        self._is_ready: torch.cuda.Event | None = None
        self._copy = values
        if values.device.type == "cuda":
            self._copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._copy.copy_(values, non_blocking=True)
            self._is_ready = torch.cuda.Event()
            self._is_ready.record()

    def values(self) -> list[float]:
        """Return the values; waits for the device if it has not come so far."""
        if self._is_ready is not None:
            self._is_ready.synchronize()
        return self._copy.tolist()
