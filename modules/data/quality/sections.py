"""Documents as filters see them: whole, but for very long ones, which are seen in sections."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from modules.data.document_rows import NO_PLACE, Place
from modules.data.documents import Piece

SECTION_CHARS = 2**20
"""A longer document is looked at in sections of about this length, each as a document of its own; bounds memory."""


class Section(NamedTuple):
    """A document, or a section of a very long one."""

    text: str
    follows: bool
    """Whether the section before is of the same document."""
    place: Place = NO_PLACE
    """Where the document comes from."""


def sections(pieces: Iterable[Piece]) -> Iterator[Section]:
    """Yield documents whole, or in sections that end where a piece does."""
    parts: list[str] = []
    num_chars, follows = 0, False
    for piece in pieces:
        parts.append(piece.text)
        num_chars += len(piece.text)
        if piece.ends_document or num_chars >= SECTION_CHARS:
            yield Section("".join(parts), follows, piece.place)
            parts, num_chars, follows = [], 0, not piece.ends_document
