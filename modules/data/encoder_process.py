"""What a tokenising process does: reads passages on one pipe, writes their tokens on the other."""

import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from modules.data.encoding import CannotEncodeError, Encoded, Passage, TextEncoder

FRAME = struct.Struct("<Q")


def write_frame(stream: BinaryIO, content: Any) -> None:
    """Write what `read_frame` returns; both ends are processes of ours, so it may be pickled."""
    data = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(FRAME.pack(len(data)))
    stream.write(data)
    stream.flush()


def read_frame(stream: BinaryIO) -> Any:
    """Return what one `write_frame` wrote; None if the other side is gone."""
    header = stream.read(FRAME.size)
    if len(header) < FRAME.size:
        return None
    (size,) = FRAME.unpack(header)
    data = stream.read(size)
    return pickle.loads(data) if len(data) == size else None  # noqa: S301  # from our own process


def main() -> None:
    """Serve until the other side closes the pipe, which also happens when it dies.

    Arguments on the command line: path of the tokenizer.json, name of the tokens' dtype.
    """
    encoder = TextEncoder(Path(sys.argv[1]).read_text(encoding="utf-8"), np.dtype(sys.argv[2]))
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the frames
    while (passages := read_frame(requests)) is not None:
        try:
            write_frame(replies, _reply(encoder, passages))
        except BrokenPipeError:
            os._exit(0)  # whoever asked is gone, and Python would report the pipe once more at its exit


def _reply(encoder: TextEncoder, passages: list[Passage]) -> Encoded | CannotEncodeError:
    try:
        return encoder.encode(passages)
    except CannotEncodeError as error:
        return error
