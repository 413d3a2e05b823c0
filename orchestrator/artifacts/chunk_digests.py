"""Which digest verifies which part of a file: each chunk has one in a file beside it, else the whole file has one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xxhash

from modules.data.digested_file import DIGEST_DTYPE, DIGESTS_ENDING
from orchestrator.artifacts.digests import FileEntry
from orchestrator.errors import ArtifactError


@dataclass(frozen=True)
class ChunkDigests:
    """The chunks of one file, and the digest of each."""

    url: str
    """Of the file, for messages."""
    name: str
    """Of the file."""
    entry: FileEntry
    chunk_bytes: int
    digests: np.ndarray | None
    """uint64 [chunks]; None where the file is verified as one chunk, by the digest in the manifest."""

    @classmethod
    def read(cls, url: str, name: str, entry: FileEntry, read: Callable[[str], bytes | None]) -> "ChunkDigests":
        """Return the chunks of a file of an artifact.

        Args:
            url: Of the file, for messages.
            name: Of the file.
            entry: Of the file in the manifest.
            read: Returns the verified content of a small file by name; None if the manifest has none of that name.

        Raises:
            ArtifactError: there are not as many digests as chunks.
        """
        content = read(name + DIGESTS_ENDING)
        if content is None:
            return cls(url, name, entry, max(1, entry.num_bytes), None)
        chunk_bytes, digests = int.from_bytes(content[:8], "little"), np.frombuffer(content[8:], DIGEST_DTYPE)
        if not chunk_bytes or len(digests) != -(-entry.num_bytes // chunk_bytes):
            raise ArtifactError(f"{url}{DIGESTS_ENDING}: has other chunks than the file ({len(digests)} digests)")
        return cls(url, name, entry, chunk_bytes, digests)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return -(-self.entry.num_bytes // self.chunk_bytes)

    def place(self, number: int) -> tuple[int, int]:
        """Return the bytes of the file at which a chunk begins and ends."""
        start = number * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.entry.num_bytes)

    def fits(self, number: int, content: bytes | memoryview) -> bool:
        """Return whether this is the content of a chunk."""
        if self.digests is None:
            return xxhash.xxh3_128_hexdigest(content) == self.entry.xxh3_128
        return xxhash.xxh3_64_intdigest(content) == int(self.digests[number])

    def damage(self, number: int) -> ArtifactError:
        """Return the error that names a chunk which does not fit."""
        if self.digests is None:
            return ArtifactError(f"{self.url} is damaged (its digest is not the one in the manifest)")
        start, stop = self.place(number)
        reason = f"not the digest in {self.name}{DIGESTS_ENDING}"
        return ArtifactError(f"{self.url} is damaged in bytes {start} to {stop} ({reason})")
