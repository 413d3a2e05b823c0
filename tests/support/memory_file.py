"""A source file whose content is in memory."""

import io
from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryFile:
    name: str
    content: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.content)

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.content)
