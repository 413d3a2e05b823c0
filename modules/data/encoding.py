"""What a tokenising process does: reads batches of text on one pipe, writes token numbers on the other.

It imports nothing but numpy and tokenizers: every process that tokenises pays for the imports once more.
"""

import os
import struct
import sys
from typing import BinaryIO

import numpy as np
import tokenizers

FRAME = struct.Struct("<Q")


def load_encoder(serialised: str) -> tokenizers.Tokenizer:
    """A tokenizer that takes special tokens in text for plain letters; the file format does not keep that choice."""
    encoder = tokenizers.Tokenizer.from_str(serialised)
    encoder.encode_special_tokens = True
    return encoder


def encode_texts(encoder: tokenizers.Tokenizer, texts: list[str], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers of all texts, one after the other, and how many each has (int64)."""
    encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
    parts = [np.array(encoding.ids, dtype=dtype) for encoding in encodings]
    return np.concatenate(parts), np.array([len(part) for part in parts], dtype=np.int64)


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
    (count,) = np.frombuffer(frame, dtype=np.int64, count=1)
    sizes = np.frombuffer(frame, dtype=np.int64, count=count, offset=8)
    stops = 8 + 8 * int(count) + np.cumsum(sizes)
    return [str(memoryview(frame)[stop - size : stop], "utf-8") for size, stop in zip(sizes, stops, strict=True)]


def main() -> None:
    """Serves until the other side closes the pipe, which also happens when it dies.

    Arguments on the command line: path of the tokenizer.json, name of the tokens' dtype.
    """
    with open(sys.argv[1], encoding="utf-8") as file:
        encoder = load_encoder(file.read())
    dtype = np.dtype(sys.argv[2])
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the frames
    while (frame := read_frame(requests)) is not None:
        tokens, counts = encode_texts(encoder, unpack_texts(frame), dtype)
        write_frame(replies, counts.data, tokens.data)
