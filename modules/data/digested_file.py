"""Files written with a digest of each chunk, so that a reader verifies the chunks that it uses and no others."""

from pathlib import Path

import numpy as np
import xxhash

CHUNK_BYTES = 2**18
"""What is verified, and fetched from a store, as one. A block of a large text is four of them (`group_order`)."""
DIGESTS_ENDING = ".digests"
"""Added to a file's name for that of its digests. Files of one chunk have none: the manifest has their digest."""
DIGEST_DTYPE = np.dtype("<u8")


class DigestedFile:
    """A file being written, with the digest of its content and, beside it, those of its chunks.

    The file of digests is uint64: the number of bytes in a chunk, then the xxh3_64 of each chunk.
    """

    def __init__(self, path: Path):
        self._path = path
        self._stream = path.open("wb")
        self._digest, self._chunk = xxhash.xxh3_128(), xxhash.xxh3_64()
        self._digests: list[int] = []
        self._num_bytes = 0

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        left = memoryview(data)
        while len(left):
            room = CHUNK_BYTES - self._num_bytes % CHUNK_BYTES
            self._chunk.update(left[:room])
            self._num_bytes += min(room, len(left))
            if self._num_bytes % CHUNK_BYTES == 0:
                self._end_chunk()
            left = left[room:]

    def _end_chunk(self) -> None:
        self._digests.append(self._chunk.intdigest())
        self._chunk.reset()

    def close(self) -> None:
        """Close the file and write the digests of its chunks, if there are several."""
        if self._stream.closed:
            return
        self._stream.close()
        if self._num_bytes % CHUNK_BYTES:
            self._end_chunk()
        if len(self._digests) > 1:
            content = np.array([CHUNK_BYTES, *self._digests], dtype=DIGEST_DTYPE).tobytes()
            self._path.with_name(self._path.name + DIGESTS_ENDING).write_bytes(content)

    def entry(self) -> dict[str, str]:
        """Return the name and the digest of the whole, as data.json lists them."""
        return {"name": self._path.name, "xxh3_128": self._digest.hexdigest()}
