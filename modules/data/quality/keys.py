"""Keys, tokens and passwords in text, found by the published formats of well-known kinds or by what they are called.

How random a text looks never suffices by itself: hashes, version numbers and identifiers would be found.

Source: the formats are those of gitleaks (config/gitleaks.toml) and of the services' own documentation.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from string import ascii_lowercase, ascii_uppercase
from typing import NamedTuple

from modules.data.quality.span import Span


class _Format(NamedTuple):
    name: str
    anchors: tuple[str, ...]
    """One of them is in every text that has such a key; searched first, which is a hundred times as fast."""
    pattern: re.Pattern[str]


def _format(name: str, anchors: str, pattern: str) -> _Format:
    return _Format(name, tuple(anchors.split()), re.compile(pattern))


_FORMATS = (
    _format("AWS access key", "AKIA ASIA ABIA ACCA", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    _format("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b"),
    _format("GitHub token", "github_pat_", r"\bgithub_pat_\w{82}\b"),
    _format("GitLab token", "glpat-", r"\bglpat-[\w-]{20,}"),
    _format("Slack token", "xox", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    _format("Slack webhook", "hooks.slack.com", r"\bhooks\.slack\.com/(?:services|workflows)/[\w+/]{40,}"),
    _format("Stripe key", "sk_ rk_", r"\b[rs]k_(?:live|test|prod)_[A-Za-z0-9]{10,99}\b"),
    _format("Google API key", "AIza", r"\bAIza[\w-]{35}(?![\w-])"),
    _format("Google client secret", "GOCSPX-", r"\bGOCSPX-[\w-]{28}(?![\w-])"),
    _format("OpenAI key", "T3BlbkFJ", r"\bsk-[\w-]{20,}T3BlbkFJ[\w-]{20,}"),
    _format("Anthropic key", "sk-ant-", r"\bsk-ant-[a-z]+\d\d-[\w-]{80,}"),
    _format("Hugging Face token", "hf_", r"\bhf_[A-Za-z0-9]{34}\b"),
    _format("npm token", "npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
    _format("PyPI token", "pypi-AgEIcHlwaS5vcmc", r"\bpypi-AgEIcHlwaS5vcmc[\w-]{50,}"),
    _format("SendGrid key", "SG.", r"\bSG\.[\w-]{22}\.[\w-]{43}(?![\w-])"),
    _format("Twilio key", "SK", r"\bSK[0-9a-f]{32}\b"),
    _format("Telegram token", ":AA", r"\b\d{8,10}:AA[\w-]{33}(?![\w-])"),
    _format("DigitalOcean token", "_v1_", r"\bdo[opr]_v1_[0-9a-f]{64}\b"),
    _format("Databricks token", "dapi", r"\bdapi[0-9a-f]{32}\b"),
    _format("Shopify token", "shp", r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}\b"),
    _format("Vault token", "hvs.", r"\bhvs\.[\w-]{90,}"),
    _format("Groq key", "gsk_", r"\bgsk_[A-Za-z0-9]{52}\b"),
    _format("Azure storage key", "AccountKey=", r"(?<=AccountKey=)[A-Za-z0-9+/]{86}=="),
    _format("JSON web token", "eyJ", r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}(?:\.[\w-]*)?"),
    _format(
        "private key",
        "PRIVATE KEY",
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[\s\S]{0,20000}?(?:-----END [A-Z0-9 ]*-----|\Z)",
    ),
)
_URL_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@\"'<>]{0,64}:(?P<value>[^\s:/@\"'<>]{3,128})@(?=[\w\[])")
_PLACEHOLDER = re.compile(r"[$%{<*(\[]|\.\.\.|…|(?i:x{3,}|pass(?:word|wd)?$|pw$|secret$|token$|your|example|changeme)")
_NAMES = ("key", "secret", "token", "password", "passwd", "pwd", "credential")
_BEFORE_KEY = re.compile(r"(?:api|access|auth|account|private|secret|encryption|signing|client)[_-]?$")
_VALUE_AFTER = re.compile(
    r"(?i:s?(?:[_-]?[a-z]{2,12}){0,2})[\"'`]?\]?\s{0,3}(?:=>|:=|==?|:)\s{0,3}"
    r"(?:[\"'`](?P<quoted>[\w+/=.~!@#$%^&*-]{12,200})[\"'`]|(?P<bare>[\w+/-]{20,200}={0,2})(?![\w.(\[-]))",
    re.ASCII,
)
"""What follows a name that says that a value is secret; a value without quotes is longer, and calls nothing."""
_BEARER = re.compile(r"\b[Bb]earer\s{1,3}(?P<value>[A-Za-z0-9._~+/-]{20,}=*)")
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
_LEAST_BITS = 3.0
_LEAST_CHANGES = 4


def keys_in(text: str) -> Iterator[Span]:
    """Yield every key of a known format, and every value that looks random and is called a key, token or password."""
    for kind in _FORMATS:
        if any(anchor in text for anchor in kind.anchors):
            yield from (Span(found.start(), found.end(), kind.name) for found in kind.pattern.finditer(text))
    if "://" in text:
        for found in _URL_PASSWORD.finditer(text):
            if not _PLACEHOLDER.match(found["value"]):
                yield Span(*found.span("value"), "password in a URL")
    lower = text.lower()
    if len(lower) != len(text):  # one letter may become two, and places must be those of the text
        lower = text.translate(_LOWER)
    for name in _NAMES:
        yield from _assigned(text, lower, name)
    if "bearer" in lower:
        for found in _BEARER.finditer(text):
            if _looks_random(found["value"]):
                yield Span(*found.span("value"), "bearer token")


def _assigned(text: str, lower: str, name: str) -> Iterator[Span]:
    """Yield the random values that are assigned to names that end in `name` and up to two words."""
    place = lower.find(name)
    while place >= 0:
        stop = place + len(name)
        if name != "key" or _BEFORE_KEY.search(lower, max(0, place - 12), place):
            found = _VALUE_AFTER.match(text, stop)
            if found and found.lastgroup and _looks_random(found[found.lastgroup]):
                yield Span(*found.span(found.lastgroup), "assigned secret")
        place = lower.find(name, stop)


def _looks_random(value: str) -> bool:
    """Return whether letters and digits alternate as by chance, which names, words, dates and versions do not."""
    kinds = [character.isdigit() for character in value if character.isalnum()]
    changes = sum(before != after for before, after in pairwise(kinds))
    return changes >= _LEAST_CHANGES and any(map(str.isalpha, value)) and _bits(value) >= _LEAST_BITS


def _bits(value: str) -> float:
    """Return the entropy of the characters in bits."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
