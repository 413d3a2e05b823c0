"""Frozen configurations of what is left out of a text, cut out or replaced in it; nothing of it is on by default."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from modules.config_fields import Config, Count, Input, LaterIdentity, Paths, Probability, as_tuple


def _sorted(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


_AnyOrder = (BeforeValidator(as_tuple), AfterValidator(_sorted))
"""Values whose order and repetition say nothing, so that they change no recipe."""
GROUPS = ("filters", "decontaminate", "redact", "deduplicate")
"""The groups of `data` whose classes are here."""
RuleName = Literal["boilerplate", "lines", "repetition", "stop_words", "symbols"]
RedactKind = Literal["email", "ip", "key", "phone"]
LanguageCode = Annotated[str, Field(pattern="^[a-z]{2,3}$")]
RegionCode = Annotated[str, Field(pattern="^[A-Z]{2}$")]


class FiltersConfig(Config):
    """Documents that are left out by themselves."""

    min_words: LaterIdentity[Count | None] = None
    """Leave out documents of fewer words between white space; Gopher has 50."""
    max_words: LaterIdentity[Count | None] = None
    """Leave out documents of more words between white space; Gopher has 100,000."""
    rules: LaterIdentity[Annotated[tuple[RuleName, ...], *_AnyOrder]] = ()
    """Published rules: `symbols`, `stop_words`, `repetition` (Gopher), `lines` (FineWeb), `boilerplate` (C4)."""
    languages: LaterIdentity[Annotated[tuple[LanguageCode, ...], *_AnyOrder]] = ()
    """Leave out documents in other languages than these, codes as `en` or `de`; empty keeps all (extra quality)."""
    min_language_probability: LaterIdentity[Probability] = 0.1
    """Leave out documents for which these languages together are less likely; of a few words no language is sure."""

    @model_validator(mode="after")
    def _lengths_leave_some(self) -> Self:
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}")
        _needs(self, "min_language_probability", bool(self.languages), "data.filters.languages")
        return self


class DecontaminateConfig(Config):
    """Held-out texts, such as test sets, whose words are cut out of the documents (Brown et al. 2020, appendix C)."""

    path: Input[Paths] = ()
    """Held-out texts: a file, folder, glob or list of them (any fsspec URL); empty cuts nothing."""
    text_fields: LaterIdentity[Annotated[tuple[str, ...], *_AnyOrder]] = ()
    """Fields of the held-out rows, each a text of its own; empty takes data.text_field."""
    ngram_words: LaterIdentity[Annotated[int, Field(ge=3, le=100)]] = 13
    """As many words in a row in common are a match; 13 in GPT-3."""

    @model_validator(mode="after")
    def _belongs_to_a_path(self) -> Self:
        for name in ("text_fields", "ngram_words"):
            _needs(self, name, bool(self.path), "data.decontaminate.path")
        return self


class RedactConfig(Config):
    """What is replaced by a tag, as `<EMAIL>`."""

    kinds: LaterIdentity[Annotated[tuple[RedactKind, ...], *_AnyOrder]] = ()
    """`email`, `ip` (public ones), `key` (keys, tokens, passwords), `phone` (extra quality); empty replaces none."""
    phone_regions: LaterIdentity[Annotated[tuple[RegionCode, ...], *_AnyOrder]] = ()
    """Countries, as `US`, whose numbers are found without their country code, too; those with +… are always found."""

    @model_validator(mode="after")
    def _regions_are_for_phones(self) -> Self:
        _needs(self, "phone_regions", "phone" in self.kinds, "data.redact.kinds=[phone]")
        return self


class DeduplicateConfig(Config):
    """Documents that are left out because an earlier one is equal or similar."""

    kind: LaterIdentity[Literal["exact", "near"] | None] = None
    """`exact`: equal texts; `near`: similar ones, too, by MinHash (extra quality); null keeps all."""
    min_similarity: LaterIdentity[Annotated[float, Field(ge=0.5, lt=1)]] = 0.75
    """From this share of 5-word sequences in common (Jaccard) on, two documents are similar; 0.75 in FineWeb."""
    against: Input[Paths] = ()
    """Texts that count as earlier: other sources or held-out texts, as in data.path, read as data.text_field says."""

    @model_validator(mode="after")
    def _belongs_to_a_kind(self) -> Self:
        _needs(self, "min_similarity", self.kind == "near", "data.deduplicate.kind=near")
        _needs(self, "against", self.kind is not None, "data.deduplicate.kind=exact or near")
        return self


def _needs(config: Config, name: str, is_given: bool, setting: str) -> None:
    if not is_given and getattr(config, name) != type(config).model_fields[name].default:
        raise ValueError(f"{name} needs {setting}")
