"""Python's own standard library as text to train on: it needs no path and no network."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import xxhash

STDLIB_ENDINGS = (".py", ".txt")
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, named relative to the folder that it was found in."""

    root: str
    name: str
    num_bytes: int

    def open(self) -> BufferedReader:
        """The file's bytes."""
        return (Path(self.root) / self.name).open("rb")

    def identity(self) -> str:
        """Digest of the content (xxh3_128)."""
        with self.open() as stream:
            return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


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
