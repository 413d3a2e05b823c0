"""Where a text ends: at a stop string, which is not part of it."""

from collections.abc import Sequence

from modules.data.decoding import TextStream


class StoppedText:
    """The text of arriving tokens up to the first stop string, whatever pieces the text comes in.

    What may become a stop string is held back until it is known not to.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str]) -> None:
        """Take the text of a stream.

        Args:
            stream: Gives the text of the tokens.
            stop: Texts that end it; none of them empty.
        """
        self._stream, self._stop = stream, tuple(stop)
        self._held = ""
        self._pieces: list[str] = []
        self.is_stopped = False
        """Whether a stop string was found."""

    @property
    def text(self) -> str:
        """All that has been returned so far."""
        return "".join(self._pieces)

    def add(self, token: int) -> str:
        """Return the text that is certain now; empty after a stop string."""
        return self._taken(self._stream.add(token))

    def finish(self) -> str:
        """Return the rest of the text: no token follows."""
        text = self._taken(self._stream.finish())
        rest, self._held = ("" if self.is_stopped else self._held), ""
        self._pieces.append(rest)
        return text + rest

    def _taken(self, piece: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + piece
        found = cut_at_stop(text, self._stop)
        self.is_stopped = found is not None
        certain = found if found is not None else text[: len(text) - _num_held(text, self._stop)]
        self._held = text[len(certain) :]
        self._pieces.append(certain)
        return certain


def cut_at_stop(text: str, stop: Sequence[str]) -> str | None:
    """Return what is before the stop string that is complete first, or None if there is none in the text."""
    places = [(start + len(string), start) for string in stop if (start := text.find(string)) >= 0]
    return text[: min(places)[1]] if places else None


def _num_held(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest end of the text with which a stop string begins."""
    longest = max(map(len, stop), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    return next((length for length in lengths if any(string.startswith(text[-length:]) for string in stop)), 0)
