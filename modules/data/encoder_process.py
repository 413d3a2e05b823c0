"""What a tokenising process does: reads batches of text on one pipe, writes token numbers on the other."""

import os
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from modules.data.encoding import TextEncoder

FRAME = struct.Struct("<Q")


def write_frame(stream: BinaryIO, *parts: bytes | memoryview) -> None:
    """Writes parts that `read_frame` returns joined."""
    stream.write(FRAME.pack(sum(memoryview(part).nbytes for part in parts)))
    stream.writelines(parts)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """What one `write_frame` wrote; None where the other side is gone."""
    header = stream.read(FRAME.size)
    if len(header) < FRAME.size:
        return None
    (size,) = FRAME.unpack(header)
    data = stream.read(size)
    return data if len(data) == size else None


def pack_texts(texts: list[str]) -> list[bytes]:
    """Parts of a frame that `unpack_texts` reads."""
    encoded = [text.encode() for text in texts]
    sizes = np.array([len(encoded), *map(len, encoded)], dtype=np.int64)
    return [sizes.tobytes(), *encoded]


def unpack_texts(frame: bytes) -> list[str]:
    """The texts that `pack_texts` was given."""
    count = int(np.frombuffer(frame, dtype=np.int64, count=1)[0])
    sizes = np.frombuffer(frame, dtype=np.int64, count=count, offset=8)
    stops = 8 + 8 * count + np.cumsum(sizes)
    content = memoryview(frame)
    return [str(content[stop - size : stop], "utf-8") for size, stop in zip(sizes, stops, strict=True)]


def main() -> None:
    """Serves until the other side closes the pipe, which also happens when it dies.

    Arguments on the command line: path of the tokenizer.json, name of the tokens' dtype.
    """
    encoder = TextEncoder(Path(sys.argv[1]).read_text(encoding="utf-8"), np.dtype(sys.argv[2]))
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the frames
    while (frame := read_frame(requests)) is not None:
        tokens, counts = encoder.encode(unpack_texts(frame))
        write_frame(replies, counts.data, tokens.data)
