"""What is found by looking at one document alone: whether it is left out, what it becomes, and how it is compared."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from modules.config_fields import Config
from modules.data.quality import rules
from modules.data.quality.language import Languages
from modules.data.quality.overlap import Cut, HeldOutWords
from modules.data.quality.redaction import Redactor, Replaced, excerpt
from modules.data.quality.similarity import NUM_HASHES, Signatures
from modules.data.quality.words import Words
from modules.quality_config import FiltersConfig, RedactConfig

REASONS = ("", "reference", "length", *rules.RULES, "language", "held_out", "equal", "similar")
"""Why a document is not kept; a number in RECORD counts them. A reference is another source's."""
CHANGES = ("key", "email", "ip", "phone", "held_out", "policy_lines")
"""What may be changed in a document that is kept; the record has the number of places of each."""
RECORD = np.dtype(
    [
        ("digest", "<u8", 2),
        ("num_bytes", "<i8"),
        ("kept_bytes", "<i8"),
        ("changes", "<u4", len(CHANGES)),
        ("reason", "u1"),
        ("start", "S160"),
    ]
)
"""What is remembered of a document: 217 bytes, in a file."""


class InspectorSettings(Config):
    """What is looked for; it holds no path of a user."""

    filters: FiltersConfig = FiltersConfig()
    redact: RedactConfig = RedactConfig()
    held_out: str | None = None
    """The folder of the index of held-out texts."""
    signs: bool = False
    """Whether the documents are compared for similarity."""


class Finding(NamedTuple):
    """Something that was found in a document."""

    document: int
    """Its number in the request."""
    name: str
    """The reason why it is left out, or the kind of what was changed in it."""
    is_change: bool
    example: str


class Inspected(NamedTuple):
    """What was found in several documents."""

    records: np.ndarray
    signatures: np.ndarray | None
    findings: list[Finding]


class _Changed(NamedTuple):
    texts: list[str]
    """What the document becomes, each a document of its own; empty if it is left out."""
    found: list[Replaced]
    """What was changed; `held_out` is what was cut out."""


class Inspector:
    """Looks at documents one by one, in this order: filters, held-out words, what is replaced.

    So a document is left out for what it is, held-out words are compared before anything in them is replaced, and
    documents are compared with each other after it: those that differ in an address alone are equal.
    """

    def __init__(self, settings: InspectorSettings):
        """Load what the settings need.

        Raises:
            InputError: A package is missing, or a value is none that it knows.
        """
        filters = self._filters = settings.filters
        self._rules = [(name, check) for name, check in rules.RULES.items() if name in filters.rules]
        self._languages = Languages(filters.languages) if filters.languages else None
        self._held_out = HeldOutWords(Path(settings.held_out)) if settings.held_out else None
        self._redactor = Redactor(settings.redact)
        self._signatures = Signatures() if settings.signs else None

    def __call__(self, request: tuple[Sequence[str], bool]) -> Inspected:
        """Return what is found in documents; of references nothing is left out or cut, but all is replaced."""
        texts, are_references = request
        records = np.zeros(len(texts), dtype=RECORD)
        signatures = None if self._signatures is None else np.zeros((len(texts), NUM_HASHES), dtype=np.uint32)
        findings: list[Finding] = []
        for number, text in enumerate(texts):
            values, found, compared = self._reference(text) if are_references else self._document(text)
            findings += [Finding(number, *finding) for finding in found]
            records[number] = _record(text, compared, **values)
            if signatures is not None and self._signatures is not None and compared is not None:
                signatures[number] = self._signatures.of(Words(compared))
        return Inspected(records, signatures, findings)

    def change(self, text: str) -> tuple[list[str], bool]:
        """Return the texts that a kept document becomes, and whether something was cut out of it."""
        changed = self._changed(self._without_lines(text)[0])
        return changed.texts, any(item.kind == "held_out" for item in changed.found)

    def _reference(self, text: str) -> tuple[Mapping[str, Any], list[tuple[str, bool, str]], str | None]:
        return {"reason": REASONS.index("reference")}, [], self._redactor.replace(text)[0]

    def _document(self, text: str) -> tuple[Mapping[str, Any], list[tuple[str, bool, str]], str | None]:
        """Return values of the record, findings, and the text that is compared if it is kept."""
        prose, policy_lines = self._without_lines(text)
        reason, why = self._reason(prose)
        if reason:
            return {"reason": REASONS.index(reason)}, [(reason, False, why)], None
        changed = self._changed(prose)
        if not changed.texts:
            return {"reason": REASONS.index("held_out")}, [("held_out", False, changed.found[0].example)], None
        found = list(changed.found)
        if policy_lines:
            found.append(Replaced("policy_lines", len(policy_lines), repr(excerpt(policy_lines[0]))))
        counts = {item.kind: item.count for item in found}
        values = {
            "kept_bytes": sum(len(kept.encode()) for kept in changed.texts),
            "changes": [counts.get(name, 0) for name in CHANGES],
        }
        return values, [(item.kind, True, item.example) for item in found], "\n".join(changed.texts)

    def _without_lines(self, text: str) -> tuple[str, list[str]]:
        return rules.without_policy_lines(text) if "boilerplate" in self._filters.rules else (text, [])

    def _reason(self, text: str) -> tuple[str, str]:
        """Return the first reason to leave the document out, and its figure."""
        filters, words = self._filters, text.split()
        if why := rules.length(words, filters.min_words, filters.max_words):
            return "length", why
        if not words and filters.rules:
            return self._rules[0][0], "no words"
        for name, check in self._rules:
            if why := check(text, words):
                return name, why
        if self._languages and (why := self._languages.reason(text, filters.min_language_probability)):
            return "language", why
        return "", ""

    def _changed(self, text: str) -> _Changed:
        cut = self._held_out.cut(text) if self._held_out else Cut([text], 0, "")
        found = [Replaced("held_out", cut.num_matches, repr(excerpt(cut.first)))] if cut.num_matches else []
        texts: list[str] = []
        counts: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for piece in cut.pieces:
            replaced, kinds = self._redactor.replace(piece)
            texts.append(replaced)
            for item in kinds:
                counts[item.kind] += item.count
                examples.setdefault(item.kind, item.example)
        return _Changed(texts, found + [Replaced(kind, counts[kind], example) for kind, example in examples.items()])


def _record(
    text: str, compared: str | None, reason: int = 0, kept_bytes: int = 0, changes: Sequence[int] = (0,) * len(CHANGES)
) -> tuple[Any, ...]:
    digest = xxhash.xxh3_128_intdigest(compared.encode()) if compared is not None else 0
    start = excerpt(text).encode()
    return [digest >> 64, digest & (2**64 - 1)], len(text.encode()), kept_bytes, changes, reason, start
