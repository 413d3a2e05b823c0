"""What is in a PNG that was written without filters."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a PNG without filters, after its chunks' sums have been checked."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, start = {}, 8
    while start < len(png):
        (size,) = struct.unpack_from(">I", png, start)
        kind, data = png[start + 4 : start + 8], png[start + 8 : start + 8 + size]
        assert struct.unpack_from(">I", png, start + 8 + size) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        start += 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert form == [8, 2, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)
