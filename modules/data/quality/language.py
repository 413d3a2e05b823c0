"""The language of a text, by a small model that comes with its package and needs no network."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from modules.errors import InputError

_PART_CHARS = 200
"""Characters that are looked at from the start, the middle and the end of a text; more hardly change the answer."""

_WRITTEN_ALIKE = {"zh": ("wuu", "yue")}
"""Languages of the model that short texts in another one are often taken for."""


class Languages:
    """Tells how likely a text is in one of the wanted languages."""

    def __init__(self, codes: Sequence[str]):
        """Load the model.

        Raises:
            InputError: `py3langid` is missing, or does not know a language.
        """
        self._codes = frozenset(codes) | {other for code in codes for other in _WRITTEN_ALIKE.get(code, ())}
        self._model = _model()
        if unknown := sorted(self._codes - set(self._model.labels)):
            known = " ".join(sorted(self._model.labels))
            raise InputError(f"data.filters.languages: the model does not know {unknown[0]}; it knows {known}")

    def reason(self, text: str, least: float) -> str | None:
        """Return why a text is left out; None keeps it.

        Args:
            text: The document.
            least: Least probability of the wanted languages together.
        """
        ranked = self._model.rank(_sample(text))
        wanted = sum(probability for code, probability in ranked if code in self._codes)
        if wanted >= least:
            return None
        return f"{ranked[0][0]} by {ranked[0][1]:.2f}, wanted ones by {wanted:.2f}, below {least:g}"


@cache
def _model() -> Any:
    """Return the model, which takes a second to load."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise InputError(
            "data.filters.languages needs the package py3langid: pip install 'gpt-orchestrator[quality]'"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _sample(text: str) -> str:
    if len(text) <= 3 * _PART_CHARS:
        return text
    middle = (len(text) - _PART_CHARS) // 2
    return " ".join((text[:_PART_CHARS], text[middle : middle + _PART_CHARS], text[-_PART_CHARS:]))
