"""Bytes as text and as lines, with the place in the file of what is not UTF-8."""

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from modules.data.compression import CHUNK_BYTES
from modules.errors import InputError

MAX_LINE_BYTES = 2**28
"""A line of a .jsonl or .csv file must be shorter than this, so that memory stays bounded."""

BYTE_ORDER_MARK = codecs.BOM_UTF8
_LINE_END = re.compile(r"\r\n?|\n")


def decoded(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield the text of a UTF-8 stream in chunks, without a byte order mark at its start.

    Raises:
        InputError: a byte is not UTF-8; the message names it and its offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    num_bytes = 0
    try:
        for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
            num_bytes += len(chunk)
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # error.object ends at the last byte read so far and may begin with bytes left over from an earlier chunk
        raise _undecodable(name, num_bytes - len(error.object) + error.start, error) from error


def _undecodable(name: str, offset: int, error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"{name}: byte {offset} (0x{error.object[error.start]:02x}) is not UTF-8 ({error.reason}); "
        "convert the file to UTF-8"
    )


def line_feed_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    r"""Yield the lines of a UTF-8 stream, which end with \n alone, as those of .jsonl do.

    Raises:
        InputError: a line is not UTF-8, or of MAX_LINE_BYTES or more.
    """
    offset = 0
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES), b""), start=1):
        if len(line) == MAX_LINE_BYTES:
            raise _too_long(name, number)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise _undecodable(name, offset + error.start, error) from error
        offset += len(line)
        yield text.removeprefix("\ufeff") if number == 1 else text


def any_end_lines(chunks: Iterable[str], name: str) -> Iterator[str]:
    r"""Yield the lines of a text in chunks, which end with \n, \r\n or \r, as those of .csv may.

    Raises:
        InputError: a line has MAX_LINE_BYTES characters or more.
    """
    # it holds a \r at the end of a chunk back until it is known whether \n follows
    line_ends = io.IncrementalNewlineDecoder(None, translate=False)
    started: list[str] = []
    number, num_chars = 1, 0
    for chunk in chunks:
        text = line_ends.decode(chunk)
        stop = 0
        for match in _LINE_END.finditer(text):
            yield "".join([*started, text[stop : match.end()]])
            started, num_chars, stop = [], 0, match.end()
            number += 1
        started.append(text[stop:])
        num_chars += len(started[-1])
        if num_chars >= MAX_LINE_BYTES:
            raise _too_long(name, number)
    if rest := "".join([*started, line_ends.decode("", final=True)]):
        yield rest


def _too_long(name: str, number: int) -> InputError:
    return InputError(f"{name}:{number}: a line of {MAX_LINE_BYTES} bytes or more; put long texts in .txt files")
