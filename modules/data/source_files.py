"""Files of text or rows on any storage: how their names and first bytes say what they are, and how they are opened."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, Protocol

from modules.config import DataConfig
from modules.data.compression import COMPRESSED_ENDINGS, DAMAGE, decompressed
from modules.errors import InputError

PLAIN_TEXT = (
    "txt text md markdown rst tex log html htm xml css py pyi c h cc cpp hpp cs java js ts go rs rb php sh sql toml "
    "yaml yml ini cfg r jl lua pl scala swift kt"
)
PLAIN_TEXT_ENDINGS = frozenset(f".{ending}" for ending in PLAIN_TEXT.split())
ROW_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_BEGINNINGS = {
    b"\x1f\x8b": "gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "zstandard (.zst)",
    b"PAR1": "Parquet (.parquet)",
    b"PK\x03\x04": "a ZIP archive",
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
}
"""How files of other formats begin."""


class SourceFile(Protocol):
    """A text file on any storage; picklable."""

    @property
    def name(self) -> str:
        """Name shown in messages; its ending decides how the file is read."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of the stored file."""
        ...

    def identity(self) -> str:
        """Return what changes with the content."""
        ...

    def open(self) -> BinaryIO:
        """Return a stream of the raw bytes, seekable for .parquet."""
        ...


@contextmanager
def opened(file: SourceFile, data: DataConfig) -> Iterator[BinaryIO]:
    """Open the content of `file`, decompressed."""
    with ExitStack() as stack:
        raw = stack.enter_context(file.open())
        yield stack.enter_context(decompressed(raw, file.name, data.zstd_window_bytes))


@contextmanager
def damage_told(file: SourceFile) -> Iterator[None]:
    """Turn what damage raises within into an InputError, and add to each one what the file looks like instead."""
    try:
        yield
    except DAMAGE as error:
        told = f"{file.name}: damaged compressed data ({error}); copy the file again"
        raise InputError(told + _looks_like(file)) from error
    except InputError as error:
        raise InputError(f"{error}{_looks_like(file)}") from error


def _looks_like(file: SourceFile) -> str:
    """Return what to add to a message about a file whose content is of another format than its name says."""
    with file.open() as stream:
        beginning = stream.read(4)
    format_name = next((kind for start, kind in _BEGINNINGS.items() if beginning.startswith(start)), None)
    is_named_so = format_name is not None and f"({file.name[file.name.rfind('.') :].lower()})" in format_name
    return f"; it looks like {format_name}, whatever its name says" if format_name and not is_named_so else ""


def check_formats(files: Iterable[SourceFile]) -> None:
    """Refuse files with an unknown ending before anything is read.

    Raises:
        InputError: A file has an unknown ending; the message names every such file.
    """
    mistakes = []
    for file in files:
        try:
            checked_ending(file.name)
        except InputError as error:
            mistakes.append(str(error))
    if mistakes:
        raise InputError("\n".join(mistakes))


def checked_ending(name: str) -> str:
    """Return the ending that says how a file is read, in lower case and without that of its compression.

    Raises:
        InputError: It is unknown.
    """
    base = name.rsplit("/", 1)[-1].lower()
    stem, dot, last = base.rpartition(".")
    if dot + last in COMPRESSED_ENDINGS:
        _, dot, last = stem.rpartition(".")
    ending = dot + last if dot else ""
    if ending not in PLAIN_TEXT_ENDINGS and ending not in ROW_ENDINGS:
        raise InputError(
            f"{name}: unknown ending {ending or '(none)'!r}; known are .txt .md .rst .py and other plain text, "
            f"{' '.join(ROW_ENDINGS)}, each also with .gz or .zst"
        )
    return ending
