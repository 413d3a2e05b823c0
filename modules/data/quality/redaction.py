"""Personal data and secrets in a text, replaced by tags; and texts that may be shown, in which they are masked."""

import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from modules.data.quality.contacts import PhoneNumbers, emails_in, ip_addresses_in
from modules.data.quality.keys import keys_in
from modules.data.quality.span import Span
from modules.quality_config import RedactConfig

TAGS = {"key": "<KEY>", "email": "<EMAIL>", "ip": "<IP_ADDRESS>", "phone": "<PHONE_NUMBER>"}
"""Those of StarCoder (Li et al. 2023, section 4), and one for phone numbers; where kinds overlap, the first wins."""
_Finder = Callable[[str], Iterable[Span]]
_FINDERS: dict[str, _Finder] = {"key": keys_in, "email": emails_in, "ip": ip_addresses_in}
_LONG_NUMBER = re.compile(r"\d(?:[ \u00a0().\-/]{0,3}\d){6,}")
_LOOKED_AT, _SHOWN = 1024, 80
_AROUND = 30


class Replaced(NamedTuple):
    """What was replaced of one kind."""

    kind: str
    count: int
    example: str
    """What the first was like, and the text around it, with nothing secret in it."""


class Redactor:
    """Replaces the chosen kinds in texts."""

    def __init__(self, settings: RedactConfig):
        """Load what the kinds need.

        Raises:
            InputError: A package is missing.
        """
        self._finders = {kind: _FINDERS[kind] for kind in TAGS if kind in settings.kinds and kind != "phone"}
        if "phone" in settings.kinds:
            self._finders["phone"] = PhoneNumbers(settings.phone_regions)

    def replace(self, text: str) -> tuple[str, list[Replaced]]:
        """Return the text with tags, and what was replaced, by kind."""
        spans = _without_overlaps(
            (rank, kind, span) for rank, (kind, find) in enumerate(self._finders.items()) for span in find(text)
        )
        first: dict[str, Span] = {}
        for kind, span in spans:
            first.setdefault(kind, span)
        counts = Counter(kind for kind, _ in spans)
        return _tagged(text, spans), [Replaced(kind, counts[kind], _example(text, kind, first[kind])) for kind in first]


def excerpt(text: str) -> str:
    """Return the beginning of a text, on one line, with personal data and secrets masked."""
    shown = " ".join(_masked(text[:_LOOKED_AT]).split())
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"


def _without_overlaps(found: Iterable[tuple[int, str, Span]]) -> list[tuple[str, Span]]:
    """Return the spans in their order; of those that overlap, the one of the lowest rank."""
    kept: list[tuple[Span, str]] = []
    for _, kind, span in sorted(found, key=lambda item: (item[0], item[2])):
        place = bisect(kept, (span, kind))
        is_free_before = place == 0 or kept[place - 1][0].stop <= span.start
        if is_free_before and (place == len(kept) or span.stop <= kept[place][0].start):
            kept.insert(place, (span, kind))
    return [(kind, span) for span, kind in kept]


def _tagged(text: str, spans: Iterable[tuple[str, Span]]) -> str:
    parts, done = [], 0
    for kind, span in spans:
        parts += [text[done : span.start], TAGS[kind]]
        done = span.stop
    return "".join([*parts, text[done:]]) if parts else text


def _example(text: str, kind: str, span: Span) -> str:
    # masked before it is cut, so that no half of a secret is left at an end
    before = _masked(text[max(0, span.start - _LOOKED_AT) : span.start])[-_AROUND:]
    after = _masked(text[span.stop : span.stop + _LOOKED_AT])[:_AROUND]
    context = " ".join(f"{before}{TAGS[kind]}{after}".split())
    return f"{span.name} of the form {_shape(text[span.start : span.stop])!r} in {context!r}"


def _shape(text: str) -> str:
    """Return a text with an x for each letter and a 0 for each digit."""
    shape = re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", text[:40]))
    return " ".join(shape.split()) + ("…" if len(text) > 40 else "")


def _masked(text: str) -> str:
    """Return a text that may be shown; numbers as long as those of phones have their digits replaced."""
    spans = _without_overlaps((rank, kind, span) for rank, (kind, span) in enumerate(_all_kinds(text)))
    return _LONG_NUMBER.sub(lambda found: re.sub(r"\d", "0", found[0]), _tagged(text, spans))


def _all_kinds(text: str) -> Iterator[tuple[str, Span]]:
    for kind, find in _FINDERS.items():
        yield from ((kind, span) for span in find(text))
