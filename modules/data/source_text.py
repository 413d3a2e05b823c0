"""Which part of a text each token stands for, and what of the text no token stands for.

This module imports only numpy and tokenizers, because every tokenising process pays for the imports again.
"""

from dataclasses import dataclass

import numpy as np
import tokenizers

NUM_EXAMPLES = 20


@dataclass(frozen=True)
class Losses:
    """Characters of a text that its tokens do not give back."""

    num_characters: int = 0
    """All characters that were looked at."""
    num_unknown: int = 0
    """Characters that became the tokenizer's unknown token."""
    num_lost: int = 0
    """Characters that became no token, though the tokenizer has no rule that leaves them out."""
    num_left_out: int = 0
    """Characters that its rules leave out, such as spaces between words."""
    examples: frozenset[str] = frozenset()
    """Some of the unknown and lost characters."""

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(
            self.num_characters + other.num_characters,
            self.num_unknown + other.num_unknown,
            self.num_lost + other.num_lost,
            self.num_left_out + other.num_left_out,
            frozenset(sorted(self.examples | other.examples)[:NUM_EXAMPLES]),
        )

    def shown(self) -> str:
        """Return the examples, as `'é' '😀'`."""
        return " ".join(map(repr, sorted(self.examples)))

    def told(self, unknown_token: str | None) -> list[str]:
        """Return lines for the user on what the tokens do not give back."""
        lines = []
        if self.num_unknown:
            lines.append(
                f"{self.num_unknown:,} of {self.num_characters:,} characters have no token and became "
                f"{unknown_token}: {self.shown()}"
            )
        if self.num_lost:
            lines.append(f"{self.num_lost:,} of {self.num_characters:,} characters are lost: {self.shown()}")
        if self.num_left_out:
            lines.append(
                f"the tokenizer's rules leave out {self.num_left_out:,} of {self.num_characters:,} characters, such as "
                "spaces, line breaks or accents: its tokens do not give them back"
            )
        return lines


class SourceText:
    """Compares texts with the tokens that a tokenizer made of them."""

    def __init__(self, encoder: tokenizers.Tokenizer, unknown_id: int | None):
        self._encoder = encoder
        self._unknown_id = unknown_id
        self._kinds: dict[str, bool | None] = {}

    def num_bytes(self, text: str, offsets: np.ndarray) -> np.ndarray:
        """Return the UTF-8 bytes of `text` that each token stands for.

        Tokens end where they say, or where a later one begins; what no token covers belongs to the next one, and the
        end of the text that none covers is left over. Of several tokens of one character the last one gets all bytes.

        Args:
            text: What was encoded.
            offsets: int64 [n, 2], first character of each token and the one after its last.

        Returns:
            int64 [n].
        """
        if len(offsets) == 0:
            return np.empty(0, dtype=np.int64)
        later_starts = np.minimum.accumulate(offsets[::-1, 0])[::-1][1:]
        stops = np.maximum.accumulate(offsets[:, 1])
        stops[:-1] = np.minimum(stops[:-1], later_starts)
        return np.diff(_byte_positions(text)[stops], prepend=0)

    def losses(self, text: str, ids: np.ndarray, offsets: np.ndarray) -> Losses:
        """Return what `text` has that its tokens `ids` do not give back; `offsets` as in `num_bytes`."""
        unknown = np.zeros(len(text), dtype=bool)
        if self._unknown_id is not None:
            unknown = _covered(len(text), offsets[ids == self._unknown_id])
        uncovered = ~_covered(len(text), offsets)
        if not (unknown.any() or uncovered.any()):
            return Losses(len(text))
        examples = {text[i] for i in np.flatnonzero(unknown)[:NUM_EXAMPLES]}
        left_out = sum(self._is_lost(text[i]) is False for i in np.flatnonzero(uncovered).tolist())
        # the places of tokens after a lost character of their word are wrong, so the uncovered one may be another
        gone = {character for character in set(text) if self._is_lost(character)} if uncovered.any() else set()
        lost = sum(map(text.count, gone))
        examples |= gone
        return Losses(len(text), int(unknown.sum()), lost, left_out, frozenset(sorted(examples)[:NUM_EXAMPLES]))

    def _is_lost(self, character: str) -> bool | None:
        """Return True if no token can stand for an uncovered character, False if a rule leaves it out, else None."""
        if character not in self._kinds:
            self._kinds[character] = self._looked_up(character)
        return self._kinds[character]

    def _looked_up(self, character: str) -> bool | None:
        encoder = self._encoder
        kept = encoder.normalizer.normalize_str(character) if encoder.normalizer else character
        if encoder.pre_tokenizer:
            kept = "".join(part for part, _ in encoder.pre_tokenizer.pre_tokenize_str(kept)) if kept else kept
        if not kept.strip("\u2581 ") or character.isspace():
            return False
        once, twice = (encoder.encode(text, add_special_tokens=False).ids for text in (character, 2 * character))
        # otherwise it became a part of its neighbour, as an accent does under NFC
        return True if once == twice and self._unknown_id not in once else None


def _covered(length: int, offsets: np.ndarray) -> np.ndarray:
    """Return bool [length], True where one of the tokens stands."""
    changes = np.zeros(length + 1, dtype=np.int64)
    np.add.at(changes, offsets[:, 0], 1)
    np.add.at(changes, offsets[:, 1], -1)
    return np.cumsum(changes)[:length] > 0


def _byte_positions(text: str) -> np.ndarray:
    """Return the position of each character and of the end in UTF-8, int64 [len(text) + 1]."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])
