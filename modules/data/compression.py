"""Streams that decompress files and detect damage."""

import gzip
import importlib
import io
import tempfile
import zlib
from typing import Any, BinaryIO

from modules.errors import InputError

CHUNK_BYTES = 2**20
COMPRESSED_ENDINGS = frozenset({".gz", ".zst"})
DAMAGE = (gzip.BadGzipFile, zlib.error, EOFError)
"""Exceptions that reading a damaged or truncated stream raises."""


def decompressed(stream: BinaryIO, name: str, zstd_window_bytes: int) -> BinaryIO:
    """Return the content of `stream`, decompressed if `name` ends with .gz or .zst.

    Args:
        zstd_window_bytes: Largest window of .zst files, which is held in memory; reading one of a larger raises
            InputError.
    """
    lowered = name.lower()
    if lowered.endswith(".gz"):
        return gzip.open(stream)  # type: ignore[return-value]
    if lowered.endswith(".zst"):
        return io.BufferedReader(_ZstdStream(stream, name, zstd_window_bytes), CHUNK_BYTES)  # type: ignore[return-value]
    return stream


class _ZstdStream(io.RawIOBase):
    """Decompress frame after frame; unlike zstandard's own reader, detect a truncated file."""

    FEED_BYTES = 2**13  # bounds memory: 8 KiB of hostile input can expand to 256 MiB

    def __init__(self, stream: BinaryIO, name: str, window_bytes: int):
        self._stream = stream
        self._name = name
        self._window_bytes = window_bytes
        self._zstd = import_package("zstandard", "to read .zst files")
        self._frame: Any = None
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if self._frame is not None and self._frame.eof:
                data, self._frame = self._frame.unused_data, None
            else:
                data = b""
            data = data or self._stream.read(self.FEED_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            self._output = memoryview(self._decompress(data))
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        if self._frame is None:
            self._frame = self._zstd.ZstdDecompressor(max_window_size=self._window_bytes).decompressobj()
        try:
            return self._frame.decompress(data)
        except self._zstd.ZstdError as error:
            if "too much memory" in str(error):
                raise InputError(
                    f"{self._name}: needs a larger window than data.zstd_window_bytes={self._window_bytes}; raise that "
                    "where it is below 2 GiB, or compress the file with a smaller window"
                ) from error
            raise EOFError(str(error)) from error


def import_package(module: str, purpose: str) -> Any:
    """Import and return a package that only some formats need.

    Raises:
        InputError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"the package {module} is needed {purpose}: pip install {module}") from error


def seekable(stream: BinaryIO) -> BinaryIO:
    """Return a seekable stream, as Parquet needs; a compressed one is first decompressed to a temporary file."""
    if stream.seekable() and not isinstance(stream, gzip.GzipFile):
        return stream
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
        unpacked.write(chunk)
    unpacked.seek(0)
    return unpacked
