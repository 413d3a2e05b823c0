"""A stretch of a text."""

from typing import NamedTuple


class Span(NamedTuple):
    """A stretch of a text that is something."""

    start: int
    stop: int
    name: str
    """What it is."""
