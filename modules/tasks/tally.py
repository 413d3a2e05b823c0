"""What became of the rows of a data set: counted, and said once with the first place."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from modules.data.source_text import Losses

Fate = Literal["dropped", "cut", "split", "in part not learned"]


class _Noted(NamedTuple):
    num_rows: int
    first: str
    last: str


@dataclass
class Tally:
    """Counts of rows, and of those that were dropped, cut or split, by reason."""

    num_rows: int = 0
    num_examples: int = 0
    losses: Losses = field(default_factory=Losses)
    """What the tokens do not give back of the text, as in `prepare`."""
    _noted: dict[tuple[Fate, str], _Noted] = field(default_factory=dict)

    def note(self, fate: Fate, reason: str, location: str) -> None:
        """Count a row, once however many of its examples have this fate."""
        found = self._noted.get((fate, reason), _Noted(0, location, ""))
        if found.last != location:
            self._noted[fate, reason] = _Noted(found.num_rows + 1, found.first, location)

    def num(self, fate: Fate) -> int:
        """Return how many rows have a fate."""
        return sum(noted.num_rows for (kind, _), noted in self._noted.items() if kind == fate)

    def add(self, later: "Tally") -> None:
        """Add the counts of rows that come after those of this one."""
        self.num_rows += later.num_rows
        self.num_examples += later.num_examples
        self.losses += later.losses
        for key, noted in later._noted.items():
            mine = self._noted.get(key, _Noted(0, noted.first, ""))
            self._noted[key] = _Noted(mine.num_rows + noted.num_rows, mine.first, noted.last)

    def lines(self, name: str, unknown_token: str | None = None) -> list[str]:
        """Return what to tell the user, a line a reason.

        Args:
            name: What the lines begin with, such as the task and the split.
            unknown_token: That of the tokenizer.
        """
        noted = [
            f"{name}: {noted.num_rows:,} of {self.num_rows:,} rows {fate}: {reason} (first: {noted.first})"
            for (fate, reason), noted in self._noted.items()
        ]
        return noted + [f"{name}: {line}" for line in self.losses.told(unknown_token)]
