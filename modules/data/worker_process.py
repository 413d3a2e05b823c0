"""What a worker process does: reads requests on one pipe, writes its replies on the other."""

import os
import pickle
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from modules.errors import InputError

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


def serve(work: Callable[[Any], Any]) -> None:
    """Answer requests by `work` until the other side closes the pipe, which also happens when it dies.

    An InputError of it is an answer, too, which the other side raises.
    """
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the frames
    while (request := read_frame(requests)) is not None:
        try:
            write_frame(replies, _reply(work, request))
        except BrokenPipeError:
            os._exit(0)  # whoever asked is gone, and Python would report the pipe once more at its exit


def _reply(work: Callable[[Any], Any], request: Any) -> Any:
    try:
        return work(request)
    except InputError as error:
        return error
