"""E-mail addresses, IP addresses and phone numbers in text."""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Any

from modules.data.quality.span import Span
from modules.errors import InputError

_AT_DOMAIN = re.compile(r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}(?P<top>[A-Za-z]{2,24})(?![\w(\[-])")
_LOCAL_PART = re.compile(r"(?<![\w.+%/=-])[A-Za-z0-9_](?:[\w.+%'-]{0,62}[\w+-])?$", re.ASCII)
_LONGEST_LOCAL_PART = 64
_TOP_DOMAINS = re.compile(
    "[a-z]{2}|academy|aero|agency|app|asia|biz|blog|blue|business|cafe|capital|care|cat|center|chat|church|city|cloud|"
    "club|codes|com|community|company|computer|consulting|coop|design|dev|digital|earth|edu|education|email|energy|"
    "events|expert|finance|foundation|fund|gallery|global|gov|group|guide|guru|health|help|host|hosting|house|info|"
    "institute|int|international|jobs|land|law|legal|life|live|ltd|marketing|media|mil|mobi|museum|name|net|network|"
    "news|ngo|one|online|org|page|partners|photography|photos|plus|press|pro|school|science|services|shop|site|"
    "software|solutions|space|store|studio|support|systems|team|tech|technology|test|tips|today|tools|top|training|"
    "travel|university|wiki|work|works|world|xyz|zone"
)
"""Those of countries and the usual others. What else stands there in code is the name of an attribute, as in q@k.mT."""
_REMOTE_PATH = re.compile(r":[\w~./-]*[/\w]")
"""What follows the host in `git@host:path`, which is no person's address."""
_IPV4 = re.compile(r"(?<![\w.-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w-]|\.\w)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:version|release|revision|section|chapter|build|firmware|driver|ver|rev|v)s?\.?\s{0,2}[:=#(\"']{0,2}\s{0,2}"
    r"|[a-z]/|§\s?)$",
    re.IGNORECASE,
)
"""A product before a slash is followed by its version, as in the names of browsers."""
_SMALL_FIRST, _SMALL = 32, 100
"""Four parts, the first below 32 and all below 100, are a version or a section; 7 in 1,000 addresses are like it."""
_AROUND = 40
_MANY_DIGITS = re.compile(r"[+(]?\d(?:[ \u00a0().\-/]{0,3}\d){6,16}")
_NUMBER = re.compile(r"\+?\d+(?:\.\d+)?|(?:\d{1,3}\.){3}\d{1,3}|.*(?<!\d)0\.\d.*", re.DOTALL)
"""A number without signs between its digits, or a decimal, also as a part, or four parts of an IP address."""


def emails_in(text: str) -> Iterator[Span]:
    """Yield every e-mail address."""
    if "@" not in text:
        return
    for found in _AT_DOMAIN.finditer(text):
        first = max(0, found.start() - _LONGEST_LOCAL_PART - 1)
        local = _LOCAL_PART.search(text[first : found.start()])
        top = found["top"].lower()
        if local is None or not _TOP_DOMAINS.fullmatch(top):
            continue
        if local[0] == "git" and _REMOTE_PATH.match(text, found.end()):
            continue
        yield Span(first + local.start(), found.end(), "e-mail address")


def ip_addresses_in(text: str) -> Iterator[Span]:
    """Yield every public IP address; private ones and those of documentation name nobody."""
    for found in _IPV4.finditer(text):
        parts = [int(part) for part in found[0].split(".")]
        before = text[max(0, found.start() - 16) : found.start()]
        is_small = parts[0] < _SMALL_FIRST and max(parts) < _SMALL
        if not is_small and _is_public(found[0]) and not _VERSION_BEFORE.search(before):
            yield Span(found.start(), found.end(), "IP address")
    if ":" in text:
        for found in _IPV6.finditer(text):
            if _is_public(found[0]):
                yield Span(found.start(), found.end(), "IP address")


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


class PhoneNumbers:
    """Finds phone numbers that exist by the numbering plans, through Google's libphonenumber."""

    def __init__(self, regions: Sequence[str]):
        """Load the numbering plans.

        Args:
            regions: Countries whose numbers count without their country code, too.

        Raises:
            InputError: `phonenumbers` is missing, or does not know a country.
        """
        try:
            import phonenumbers
        except ImportError as error:
            raise InputError(
                "data.redact.kinds=[phone] needs the package phonenumbers: pip install 'gpt-orchestrator[quality]'"
            ) from error
        self._library: Any = phonenumbers
        if unknown := sorted(set(regions) - set(phonenumbers.SUPPORTED_REGIONS)):
            raise InputError(f"data.redact.phone_regions: {unknown[0]} is no country; use codes as US, DE or FR")
        self._regions = regions

    def __call__(self, text: str) -> Iterator[Span]:
        """Yield every phone number."""
        # the library takes long for a whole text, and looks at little around a number
        windows: list[list[int]] = []
        for found in _MANY_DIGITS.finditer(text):
            if windows and found.start() - windows[-1][1] <= 2 * _AROUND:
                windows[-1][1] = found.end()
            else:
                windows.append([found.start(), found.end()])
        for first, last in windows:
            start = max(0, first - _AROUND)
            for span in self._in_window(text[start : last + _AROUND]):
                yield Span(start + span.start, start + span.stop, span.name)

    def _in_window(self, window: str) -> list[Span]:
        spans: dict[int, Span] = {}
        for region in (None, *self._regions):
            if region is None and "+" not in window:
                continue
            strict = self._library.Leniency.VALID if region is None else self._library.Leniency.STRICT_GROUPING
            for match in self._library.PhoneNumberMatcher(window, region, leniency=strict):
                if self._is_phone(window, match):
                    spans.setdefault(match.start, Span(match.start, match.end, "phone number"))
        return list(spans.values())

    @staticmethod
    def _is_phone(window: str, match: Any) -> bool:
        raw = match.raw_string
        if re.match(r"\.\d", window[match.end : match.end + 2]) or re.search(r"\d\.$", window[: match.start]):
            return False  # a part of a decimal
        if raw.startswith("+"):
            return True
        return not _NUMBER.fullmatch(raw)
