"""Published rules on what a document must not be like, each a function of its text alone.

Sources, by their numbers below:
1. Rae et al. 2021, Scaling Language Models (Gopher), arXiv 2112.11446, section A.1.1 and table A1.
2. Penedo et al. 2024, The FineWeb Datasets, arXiv 2406.17557, section 3.5.
3. Raffel et al. 2020, Exploring the Limits of Transfer Learning (C4), section 2.2, and `c4_utils.py` of TensorFlow
   Datasets for the phrases on cookies.
Words are what white space separates, as in 1.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

_BULLETS = ("•", "‣", "▪", "◦", "●", "-", "*")
_ELLIPSES = ("...", "…")
_LETTER = re.compile(r"[^\W\d_]")
_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_WORD_END = ".,;:!?\"'()[]"
_TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_MOST_DUPLICATES, _MOST_DUPLICATE_CHARACTERS = 0.30, 0.20
_SENTENCE_ENDS = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？")
_SHORT_LINE = 30
_POLICY = re.compile(
    r"javascript|terms of use|privacy policy|cookie policy|uses? cookies|use of cookies", re.IGNORECASE
)

Reason = str | None
"""Why a document is left out, with the figure that decided; None keeps it."""


def length(words: Sequence[str], least: int | None, most: int | None) -> Reason:
    """Say which bound the number of words breaks."""
    if least is not None and len(words) < least:
        return f"{len(words):,} words, fewer than {least:,}"
    if most is not None and len(words) > most:
        return f"{len(words):,} words, more than {most:,}"
    return None


def symbols(text: str, words: Sequence[str]) -> Reason:
    """Gopher's rules of quality, but those of length and stop words (source 1)."""
    num_words, lines = max(1, len(words)), text.splitlines() or [""]
    mean = sum(map(len, words)) / num_words
    hashes, ellipses = text.count("#") / num_words, sum(map(text.count, _ELLIPSES)) / num_words
    bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines)
    open_ends = sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / len(lines)
    with_letters = sum(_LETTER.search(word) is not None for word in words) / num_words
    checks = (
        (not 3 <= mean <= 10, f"mean word length {mean:.1f}, outside 3 to 10"),
        (hashes > 0.1, f"{hashes:.2f} # a word, more than 0.1"),
        (ellipses > 0.1, f"{ellipses:.2f} ellipses a word, more than 0.1"),
        (bullets > 0.9, f"{bullets:.0%} of lines start with a bullet, more than 90%"),
        (open_ends > 0.3, f"{open_ends:.0%} of lines end with an ellipsis, more than 30%"),
        (with_letters < 0.8, f"{with_letters:.0%} of words have a letter, fewer than 80%"),
    )
    return next((reason for is_broken, reason in checks if is_broken), None)


def stop_words(words: Sequence[str]) -> Reason:
    """At least two of eight frequent English words (source 1); for English alone."""
    found = {word.strip(_WORD_END).lower() for word in words} & _STOP_WORDS
    return None if len(found) >= 2 else f"{len(found)} of 8 stop words, fewer than 2"


def repetition(text: str, words: Sequence[str]) -> Reason:
    """Gopher's thirteen limits on repeated lines, paragraphs and sequences of words (source 1, table A1)."""
    for name, parts in (("lines", text.splitlines()), ("paragraphs", re.split(r"\n{2,}", text.strip()))):
        parts = [part for part in parts if part.strip()]
        repeated, num_chars = _repeated(parts)
        if parts and repeated / len(parts) > _MOST_DUPLICATES:
            return f"{repeated / len(parts):.0%} of {name} are repeated, more than 30%"
        if num_chars > _MOST_DUPLICATE_CHARACTERS * len(text):
            return f"{num_chars / len(text):.0%} of characters are in repeated {name}, more than 20%"
    # of words alone, so that spaces do not count and a share cannot pass 1
    num_chars = sum(map(len, words))
    for size, most in _TOP_NGRAMS.items():
        share = _top_share(words, size, num_chars)
        if share == 0:
            return None  # nor is anything longer repeated
        if share > most:
            return f"{share:.0%} of characters are in the most frequent {size} words in a row, more than {most:.0%}"
    for size, most in _DUPLICATE_NGRAMS.items():
        share = _duplicate_share(words, size, num_chars)
        if share == 0:
            return None
        if share > most:
            return f"{share:.0%} of characters are in repeated {size} words in a row, more than {most:.0%}"
    return None


def lines(text: str) -> Reason:
    """FineWeb's three limits on lines (source 2)."""
    rows = [line.strip() for line in text.splitlines() if line.strip()]
    if not rows:
        return None
    ended = sum(row.endswith(_SENTENCE_ENDS) for row in rows) / len(rows)
    if ended <= 0.12:
        return f"{ended:.0%} of lines end a sentence, no more than 12%"
    repeated = _repeated(rows)[1] / sum(map(len, rows))
    if repeated >= 0.1:
        return f"{repeated:.0%} of characters are in repeated lines, 10% or more"
    short = sum(len(row) < _SHORT_LINE for row in rows) / len(rows)
    return f"{short:.0%} of lines have fewer than 30 characters, 67% or more" if short >= 0.67 else None


def boilerplate(text: str) -> Reason:
    """C4's signs of a page that is no prose: a curly bracket, or "lorem ipsum" (source 3)."""
    if "{" in text:
        return "a curly bracket"
    return "lorem ipsum" if "lorem ipsum" in text.lower() else None


def without_policy_lines(text: str) -> tuple[str, list[str]]:
    """Return the text without the lines that mention JavaScript, cookies or terms of use, as C4 has it; and those."""
    if _POLICY.search(text) is None:
        return text, []
    kept, left_out = [], []
    for line in text.splitlines(keepends=True):
        (left_out if _POLICY.search(line) else kept).append(line)
    return "".join(kept), left_out


RULES: Mapping[str, Callable[[str, Sequence[str]], Reason]] = {
    "boilerplate": lambda text, _: boilerplate(text),
    "symbols": symbols,
    "stop_words": lambda _, words: stop_words(words),
    "lines": lambda text, _: lines(text),
    "repetition": repetition,
}
"""By the names of `data.filters.rules`, the cheap ones first; each gets the text and its words."""


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """Return how many parts are equal to an earlier one, and their characters."""
    counts = Counter(parts)
    return len(parts) - len(counts), sum((count - 1) * len(part) for part, count in counts.items() if count > 1)


def _top_share(words: Sequence[str], size: int, num_chars: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
    ngram, count = max(counts.items(), key=itemgetter(1), default=((), 0))
    return count * sum(map(len, ngram)) / num_chars if count > 1 else 0.0


def _duplicate_share(words: Sequence[str], size: int, num_chars: int) -> float:
    """Return the share of characters in sequences that stood before; none counts twice (source 1)."""
    ngrams = list(zip(*(words[start:] for start in range(size)), strict=False))
    if len(set(ngrams)) == len(ngrams):
        return 0.0
    seen: set[tuple[str, ...]] = set()
    covered, repeated = 0, 0
    for start, ngram in enumerate(ngrams):
        if ngram in seen:
            repeated += sum(map(len, words[max(start, covered) : start + size]))
            covered = start + size
        seen.add(ngram)
    return repeated / num_chars
