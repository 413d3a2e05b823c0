"""What was left out and replaced in a text: counts and a few examples, for the manifest and for the user."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modules.data.quality.inspection import CHANGES, REASONS, Finding
from modules.data.quality.sections import SECTION_CHARS, Section

NUM_EXAMPLES = 3
_TOLD = {
    "length": "for their length",
    "boilerplate": "as boilerplate",
    "symbols": "for their symbols",
    "stop_words": "for too few stop words",
    "lines": "for their lines",
    "repetition": "for repetition",
    "language": "for their language",
    "held_out": "for what they have in common with held-out texts",
    "equal": "as equal to an earlier one",
    "similar": "as similar to an earlier one",
}
_CHANGED = {
    "key": "replaced {} keys, tokens and passwords",
    "email": "replaced {} e-mail addresses",
    "ip": "replaced {} IP addresses",
    "phone": "replaced {} phone numbers",
    "held_out": "cut out {} sequences of words of held-out texts",
    "policy_lines": "left out {} lines on JavaScript, cookies or terms of use",
}


@dataclass
class Findings:
    """Collects what was found, in the order of the documents, so that it is the same on any number of processes."""

    examples: dict[str, list[str]] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    num_short: int = 0
    """Held-out texts that are too short to be compared."""
    num_sections: int = 0
    """Sections that follow another one of the same document, each of which counts as a document."""

    def counted(self, sections: Iterable[Section]) -> Iterator[Section]:
        """Yield `sections`, and count those that follow another one."""
        for section in sections:
            self.num_sections += section.follows
            yield section

    def add(self, finding: Finding, start: str) -> None:
        """Count a finding in a document that begins with `start`."""
        if finding.is_change:
            _keep(self.examples.setdefault(finding.name, []), finding.example)
        else:
            _keep(self.reasons.setdefault(finding.name, []), f"{start!r} ({finding.example})")

    def add_repeated(self, name: str, start: str, earlier: str) -> None:
        """Give an example of a document that repeats an earlier one."""
        other = "" if earlier == start else f" (like {earlier!r})"
        _keep(self.reasons.setdefault(name, []), f"{start!r}{other}")

    def record(self, records: np.ndarray) -> dict[str, Any]:
        """Return what the manifest says, given the records of all documents; references are no documents."""
        kept = records[records["reason"] == 0]
        removed = {
            name: {
                "documents": int(np.count_nonzero(records["reason"] == number)),
                "bytes": int(records["num_bytes"][records["reason"] == number].sum()),
                "examples": self.reasons.get(name, []),
            }
            for number, name in enumerate(REASONS)
            if name in _TOLD and np.any(records["reason"] == number)
        }
        changed = {
            name: {
                "documents": int(np.count_nonzero(kept["changes"][:, number])),
                "places": int(kept["changes"][:, number].sum()),
                "examples": self.examples.get(name, []),
            }
            for number, name in enumerate(CHANGES)
            if np.any(kept["changes"][:, number])
        }
        are_own = records["reason"] != REASONS.index("reference")
        return {
            "documents": {"read": int(are_own.sum()), "kept": len(kept)},
            "bytes": {"read": int(records["num_bytes"][are_own].sum()), "kept": int(kept["kept_bytes"].sum())},
            "left_out": removed,
            "changed": changed,
            **({"further_sections": self.num_sections} if self.num_sections else {}),
            **({"held_out_texts_too_short": self.num_short} if self.num_short else {}),
        }


def told(record: Mapping[str, Any]) -> list[str]:
    """Return lines for the user on what `Findings.record` says."""
    documents, sizes = record["documents"], record["bytes"]
    lines = [
        f"kept {documents['kept']:,} of {documents['read']:,} documents, "
        f"{sizes['kept']:,} of {sizes['read']:,} bytes of text"
    ]
    for name, found in record["left_out"].items():
        lines.append(
            f"left out {found['documents']:,} documents ({found['bytes']:,} bytes) {_TOLD[name]}"
            + _such_as(found["examples"])
        )
    for name, found in record["changed"].items():
        places = _CHANGED[name].format(f"{found['places']:,}")
        lines.append(f"{places} in {found['documents']:,} documents{_such_as(found['examples'])}")
    if further := record.get("further_sections"):
        lines.append(
            f"long documents were looked at in sections of {SECTION_CHARS:,} characters; the figures count sections, "
            f"{further:,} more than there are documents"
        )
    if short := record.get("held_out_texts_too_short"):
        lines.append(f"{short:,} held-out texts have too few words to be compared")
    return lines


def _such_as(examples: list[str]) -> str:
    return f", such as {'; '.join(examples)}" if examples else ""


def _keep(examples: list[str], example: str) -> None:
    if len(examples) < NUM_EXAMPLES:
        examples.append(example)
