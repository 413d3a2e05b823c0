"""Where a long document is cut, so that its pieces have the tokens of the whole under every tokenizer.

Two facts make it possible. If the tokens of the whole text end at a place, no merge and no word crosses it, so the text
after it has the same tokens whatever comes before. And what a tokenizer does to the start of a text, such as the space
that Llama 2 puts there, reaches no further than the first tokens: text from before the cut is encoded with the piece,
and its tokens are dropped.
"""

from collections.abc import Iterator
from typing import NamedTuple

import tokenizers

from modules.data.encoding import CannotEncodeError, load_encoder

NEAR_CHARS, FAR_CHARS = 128, 1024
"""Characters on each side of a cut that are looked at, and where no place was found among those, the second time."""
REACHES = (0, 1, 4, 16)
"""Tokens beyond a cut that are tried as the text that is encoded with a piece."""
NUM_TRIED = 32
"""Places that are tried, the nearest first."""


class Joint(NamedTuple):
    """Where two neighbouring pieces are joined, and what of each has to be encoded with the other."""

    place: int
    """Characters from the start of the left piece."""
    lead: str = ""
    """Text before it, for the right piece."""
    num_lead_tokens: int = 0
    trail: str = ""
    """Text after it, for the left piece."""
    num_trail_tokens: int = 0


class Joints:
    """Finds the joints of one tokenizer."""

    def __init__(self, serialised: str):
        """Load the text of a tokenizer.json."""
        self._encoder = load_encoder(serialised)
        self._encoder.post_processor = None  # a ByteLevel one moves the places of tokens

    def joint(self, left: str, right: str) -> Joint | None:
        """Return the joint nearest to where `left` ends and `right` begins; None if there is none, as within a word.

        Raises:
            CannotEncodeError: The text holds what the tokenizer has no token for.
        """
        try:
            for reach in (NEAR_CHARS, FAR_CHARS):
                around, middle = left[-reach:] + right[:reach], min(reach, len(left))
                for found in self._found(around, middle):
                    return found._replace(place=len(left) - middle + found.place)
        except Exception as error:  # `tokenizers` raises a bare Exception
            raise CannotEncodeError(str(error)) from error
        return None

    def _found(self, text: str, middle: int) -> Iterator[Joint]:
        """Yield the joints of `text` near its middle, words' ends first."""
        whole = self._encoder.encode(text, add_special_tokens=False)
        spans, words = whole.offsets, whole.word_ids
        ends = [i for i in range(1, len(spans)) if spans[i - 1][1] <= spans[i][0] and spans[i - 1][1] > 0]
        # the text was cut at both ends, so the tokens there may not be those of the whole
        inner = [i for i in ends if len(text) / 8 < spans[i - 1][1] < len(text) * 7 / 8]
        inner.sort(key=lambda i: (words[i - 1] == words[i], abs(spans[i - 1][1] - middle)))
        for number in inner[:NUM_TRIED]:
            found = self._checked(text, whole, number)
            if found is not None:
                yield found

    def _checked(self, text: str, whole: tokenizers.Encoding, number: int) -> Joint | None:
        """Return the joint before token `number`, if both sides then keep the tokens of the whole."""
        trail, lead = self._trail(text, whole, number), self._lead(text, whole, number)
        if trail is None or lead is None:
            return None
        return Joint(whole.offsets[number - 1][1], *lead, *trail)

    def _trail(self, text: str, whole: tokenizers.Encoding, number: int) -> tuple[str, int] | None:
        """Return the least text that has to be encoded with what lies before a joint, and its number of tokens."""
        place = whole.offsets[number - 1][1]
        for reach in REACHES:
            stop = whole.offsets[min(number + reach, len(whole.ids)) - 1][1]
            part = self._encoder.encode(text[:stop], add_special_tokens=False)
            num_trail = len(part.ids) - number
            if num_trail < 0 or part.ids[:number] != whole.ids[:number] or (num_trail == 0) != (stop == place):
                continue
            if num_trail == 0 or part.offsets[number][0] >= place:
                return text[place:stop], num_trail
        return None

    def _lead(self, text: str, whole: tokenizers.Encoding, number: int) -> tuple[str, int] | None:
        """Return the least text that has to be encoded with what lies after a joint, and its number of tokens."""
        place = whole.offsets[number - 1][1]
        for reach in REACHES:
            start = whole.offsets[max(0, number - reach)][0] if reach else place
            part = self._encoder.encode(text[start:], add_special_tokens=False)
            num_lead = len(part.ids) - (len(whole.ids) - number)
            if num_lead < 0 or part.ids[num_lead:] != whole.ids[number:] or (num_lead == 0) != (start == place):
                continue
            if num_lead == 0 or part.offsets[num_lead - 1][1] <= place - start:
                return text[start:place], num_lead
        return None
