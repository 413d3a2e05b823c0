"""Rules of the texts of a mixture, before and after they are validated."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

_OF_ONE_TEXT = ("path", "val_path", "test_path", "revision")
"""Fields that no two texts have in common."""


def with_shared_fields(raw: Any, text: type[BaseModel]) -> Any:
    """Return raw values in which each of `sources` has the fields of a text that it leaves out.

    Args:
        raw: Values of a group that may have `sources`, whatever they are.
        text: The class of a text's fields.
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("sources"), list | tuple):
        return raw
    names = [name for name in text.model_fields if name in raw and name not in _OF_ONE_TEXT]
    # a mistake in a shared field is reported once, where it was made
    shared = {name: raw[name] for name in names if name not in _mistaken({name: raw[name] for name in names}, text)}
    return {**raw, "sources": [_whole(source, shared) for source in raw["sources"]]}


def _mistaken(values: Mapping[str, Any], text: type[BaseModel]) -> set[Any]:
    try:
        text.model_validate(values)
    except ValidationError as error:
        return {place["loc"][0] for place in error.errors(include_url=False) if place["loc"]}
    return set()


def _whole(source: Any, shared: Mapping[str, Any]) -> Any:
    if not isinstance(source, Mapping):
        return source
    # the default source, the standard library, is none that anybody forgets to name
    kind = "files" if shared.get("source", "stdlib") == "stdlib" else shared["source"]
    return {**shared, "source": kind, **source}


def check_sources(sources: Sequence[tuple[str, float]]) -> None:
    """Raise ValueError unless names, each with a weight, are those of a mixture."""
    repeated = [name for name, number in Counter(name for name, _ in sources).items() if number > 1]
    if repeated:
        raise ValueError(f"sources: several are called {', '.join(repeated)}; give each a name of its own")
    if not any(weight for _, weight in sources):
        raise ValueError("sources: the weights sum to nothing; at least one must be above 0")
