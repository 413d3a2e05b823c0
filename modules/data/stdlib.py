"""Python's own standard library as text to train on: it needs no path and no network."""

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from modules.data.compression import CHUNK_BYTES

STDLIB_ENDINGS = (".py", ".txt")
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, named relative to the folder that it was found in."""

    root: str
    name: str
    num_bytes: int

    def open(self) -> BinaryIO:
        """The file's bytes."""
        return (Path(self.root) / self.name).open("rb")

    def identity(self) -> str:
        """Digest of the content (xxh3_128)."""
        digest = xxhash.xxh3_128()
        with self.open() as stream:
            for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
                digest.update(chunk)
        return digest.hexdigest()


def stdlib_files(root: str | None = None) -> list[LocalFile]:
    """Source and documentation of the running interpreter's standard library, sorted by name.

    Empty files are left out, and so are those that are not UTF-8: Python's tests hold some that are broken on purpose.

    Args:
        root: Another folder to look in.
    """
    folder = root or sysconfig.get_path("stdlib")
    return [LocalFile(folder, name, size) for name in sorted(_names(folder)) if (size := _utf8_size(folder, name))]


def _names(root: str) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        inside = Path(folder).relative_to(root)
        yield from ((inside / name).as_posix() for name in files if name.endswith(STDLIB_ENDINGS))


def _utf8_size(folder: str, name: str) -> int:
    data = (Path(folder) / name).read_bytes()
    try:
        data.decode()
    except UnicodeDecodeError:
        return 0
    return len(data)
