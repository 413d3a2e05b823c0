"""Page-locks the memory that a device copies into: it copies at its full speed then, and nobody waits for each copy."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from orchestrator.distributed.training_state import TrainingState

_FAILED = -1


class Pinning(Protocol):
    """Page-locks memory for a device."""

    def pin(self, memory: Tensor) -> bool:
        """Page-lock `memory`, uint8 [num_bytes], from the beginning of a page; return whether it is."""
        ...

    def unpin(self, memory: Tensor) -> None:
        """Undo it; must be called before the pages are given back, since the device would go on writing into them."""
        ...

    def wait(self) -> None:
        """Wait until the device has made the copies that it was asked for."""
        ...

    @property
    def failure(self) -> str | None:
        """Why memory was not page-locked; None if it was."""
        ...


class CudaPinning:
    """Page-locks memory for a GPU.

    Args:
        device: The GPU, which must be in use by this process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.failure: str | None = None

    def pin(self, memory: Tensor) -> bool:
        code = self._called(lambda cudart: cudart.cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
        self.failure = f"cudaHostRegister failed with error {code}" if code else None
        return not code

    def unpin(self, memory: Tensor) -> None:
        self._called(lambda cudart: cudart.cudaHostUnregister(memory.data_ptr()))

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def _called(self, function: Callable[[Any], Any]) -> int:
        codes: list[int] = []

        def call() -> None:
            with suppress(RuntimeError):  # of a GPU that has failed, which ends the training elsewhere
                torch.cuda.set_device(self._device)
                codes.append(int(function(torch.cuda.cudart())))

        # CUDA keeps a thread's last error, and torch would raise it after this thread's next kernel
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return codes[0] if codes else _FAILED


def pinning_of(state: TrainingState) -> Pinning | None:
    """Return what page-locks memory for copies of a state; None if all of it is in the host's memory."""
    devices = [fragment.view.device for fragment in state.owned() if fragment.view.device.type == "cuda"]
    return CudaPinning(devices[0]) if devices else None
