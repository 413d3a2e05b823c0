"""Sizes and digests of files, by which a manifest shows that they are whole."""

import hashlib
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import xxhash

from orchestrator.errors import ArtifactError


@dataclass(frozen=True)
class FileEntry:
    """Size and content of one file, as the manifest lists it."""

    num_bytes: int
    xxh3_128: str
    """Hexadecimal digest; fast and for accidents, no defence against a forger."""

    def check(self, found: "FileEntry", file: str) -> None:
        """Raise ArtifactError if what was found is not what this entry says.

        Args:
            file: The file's name in the message.
        """
        if found.num_bytes != self.num_bytes:
            raise ArtifactError(f"{file} has {found.num_bytes} bytes; the manifest says {self.num_bytes}")
        if found.xxh3_128 != self.xxh3_128:
            raise ArtifactError(f"{file} is damaged (its digest is not the one in the manifest)")


def digest(stream: BufferedReader) -> FileEntry:
    """Size and digest of `stream`, which is at its start, read piece by piece."""
    state = hashlib.file_digest(stream, xxhash.xxh3_128)
    return FileEntry(stream.tell(), state.hexdigest())


def digest_bytes(data: bytes) -> FileEntry:
    """Size and digest of `data`."""
    return FileEntry(len(data), xxhash.xxh3_128_hexdigest(data))


def digest_file(path: Path) -> FileEntry:
    """Size and digest of a local file."""
    with open(path, "rb") as file:
        return digest(file)
