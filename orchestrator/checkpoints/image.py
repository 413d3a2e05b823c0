"""The copy of a save in memory, which the training makes and the writer process opens as a file."""

import mmap
import os
import tempfile
from pathlib import Path

import torch

from orchestrator.checkpoints.pinning import Pinning
from orchestrator.checkpoints.snapshot import Snapshot


class Image:
    """Memory for one save after the other, allocated and page-locked once.

    Args:
        pinning: Page-locks it; None if no device copies into it.
    """

    def __init__(self, pinning: Pinning | None = None) -> None:
        self.inherited: tuple[int, ...] = ()
        """Descriptors that the writer process must inherit."""
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("checkpoint")
            self.inherited, self.path = (self._file,), f"/proc/self/fd/{self._file}"
        else:
            self._file, self.path = tempfile.mkstemp(prefix="checkpoint-")
        self._pinning = pinning
        self._mapped = self._held = torch.empty(0, dtype=torch.uint8)
        self.is_pinned = False
        """Whether it is page-locked."""

    def reserve(self, num_bytes: int) -> None:
        """Have memory for a save of this size, touch its pages and page-lock them.

        Raises:
            OSError: there is no such memory.
        """
        if num_bytes == self._held.numel():
            return
        # a file that is cut gives its last pages back, whatever the device knows of them
        self._unpin()
        self._held = torch.empty(0, dtype=torch.uint8)
        os.ftruncate(self._file, num_bytes)
        if num_bytes > self._mapped.numel():
            self._mapped = torch.frombuffer(mmap.mmap(self._file, num_bytes), dtype=torch.uint8)
            # the first touch of a page costs more than the copy; torch releases the interpreter's lock, mmap would not
            self._mapped.zero_()
        self._held = self._mapped[:num_bytes]
        self.is_pinned = self._pinning is not None and self._pinning.pin(self._held)

    def hold(self, snapshot: Snapshot) -> None:
        """Copy the file of a snapshot; the state may change afterwards.

        Raises:
            OSError: there is no memory for it.
        """
        self.reserve(snapshot.num_bytes)
        snapshot.copy_into(self._held)
        if self._pinning is not None:
            self._pinning.wait()

    def close(self) -> None:
        """Free the memory."""
        self._unpin()
        self._mapped = self._held = torch.empty(0, dtype=torch.uint8)
        os.close(self._file)
        if not self.inherited:
            Path(self.path).unlink(missing_ok=True)

    def _unpin(self) -> None:
        if self.is_pinned and self._pinning is not None:
            self._pinning.unpin(self._held)
        self.is_pinned = False
