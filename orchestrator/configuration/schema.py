"""Look-ups in the configuration classes: fields by path, nearest names, values as a user types them."""

import difflib
import re
import types
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, Field, create_model
from pydantic.fields import FieldInfo

from modules.config import DERIVED, Config
from orchestrator.storage.redaction import redact

_LONGEST_VALUE = 80
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ALIKE = 0.7
"""Ratio of difflib from which on one name counts as a misspelling of another."""


def config_classes(annotation: Any) -> list[type[Config]]:
    """Return every configuration class in a type, as in `tuple[PhaseConfig, ...]` or `DataConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [found for part in get_args(annotation) for found in config_classes(part)]


def class_at(root: type[Config], path: Sequence[str | int]) -> type[Config] | None:
    """Return the class of the fields at `path`; list indices, and the names in a dict of groups, are skipped."""
    found: type[Config] | None = root
    is_name = False
    for part in path:
        # in a key that is typed an index is text
        if isinstance(part, int) or found is None or (part.isdigit() and not is_name):
            continue
        if is_name:
            is_name = False
            continue
        field = found.model_fields.get(part)
        found = _merged(tuple(config_classes(field.annotation))) if field else None
        is_name = field is not None and _names_groups(field)
    return found


def field_at(root: type[Config], path: Sequence[str | int]) -> FieldInfo | None:
    """Return the field at `path`, or None where there is no such field; a name in a dict of groups is that dict's."""
    above = [part for part in path[:-1] if isinstance(part, str)]
    if above and (field := _own_field(root, above)) and _names_groups(field):
        return field
    return _own_field(root, path)


def _own_field(root: type[Config], path: Sequence[str | int]) -> FieldInfo | None:
    parent = class_at(root, path[:-1])
    return parent.model_fields.get(str(path[-1])) if parent else None


def _names_groups(field: FieldInfo) -> bool:
    """Return whether the field is a dict of groups by name."""
    return get_origin(field.annotation) is dict and bool(config_classes(field.annotation))


def leaves(root: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted path and the field of everything a user may set, without the fields of list items."""
    for name, field in root.model_fields.items():
        group = group_class(field)
        if DERIVED in field.metadata:
            continue
        if group:
            yield from leaves(group, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def group_class(field: FieldInfo) -> type[Config] | None:
    """Return the class of a field that is itself a group of fields, or None."""
    return _merged(tuple(part for part in _alternatives(field.annotation) if config_classes(part) == [part]))


@cache
def _merged(classes: tuple[type[Config], ...]) -> type[Config] | None:
    """Return a class with the fields of all `classes`, for look-ups alone; None if there are none."""
    if len(classes) < 2:
        return next(iter(classes), None)
    fields: dict[str, list[FieldInfo]] = {}
    for name, field in (item for kind in classes for item in kind.model_fields.items()):
        fields.setdefault(name, []).append(field)
    return create_model("Any", __base__=Config, **{name: _either(of) for name, of in fields.items()})  # type: ignore[call-overload]


def _either(fields: list[FieldInfo]) -> tuple[Any, FieldInfo]:
    """Return the type and the definition of a field that several classes have."""
    first = fields[0]
    either = Union[tuple(dict.fromkeys(field.annotation for field in fields))]  # noqa: UP007
    return Annotated[either, *first.metadata], Field(default=first.default, description=first.description)


def explanation(field: FieldInfo | None) -> str:
    """Return the field's docstring on one line."""
    return " ".join((field.description or "").replace("`", "").split()) if field else ""


def typed(value: Any) -> str:
    """Return `value` as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    if value is None:
        return "null"
    return str(value) if value != "" else "''"


def takes_text(field: FieldInfo) -> bool:
    """Return whether the field accepts any text."""
    return any(part is str for part in _alternatives(field.annotation)) or takes_texts(field)


def takes_texts(field: FieldInfo) -> bool:
    """Return whether the field accepts a list of texts, or a single text in its place."""
    takes_one = any(isinstance(item, BeforeValidator) for item in field.metadata)
    return takes_one and get_args(field.annotation) == (str, ...)


def takes_null(field: FieldInfo) -> bool:
    """Return whether null is a value of the field."""
    return type(None) in _alternatives(field.annotation)


def holds_text(field: FieldInfo) -> bool:
    """Return whether the field's value, or each item of its list, is any text."""
    return takes_text(field) or any(_alternatives(item) == [str] for item in get_args(field.annotation)[:1])


def is_list(field: FieldInfo) -> bool:
    """Return whether the field accepts nothing but a list."""
    return all(get_origin(part) is tuple for part in _alternatives(field.annotation))


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the values of a field that accepts one of a fixed set."""
    return tuple(str(value) for part in _alternatives(field.annotation) for value in _literal_values(part))


def nearest(name: str, names: Sequence[str]) -> str | None:
    """Return the one of `names` that is most similar to `name`, or None if none is similar."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE - 0.1)
    return found[0] if found else None


def nearest_keys(root: type[Config], path: Sequence[str | int]) -> list[str]:
    """Return up to two keys that the unknown key at `path` may mean, best first.

    A neighbour of the same group is meant rather than a field of another group that is as similar.
    """
    parent = class_at(root, path[:-1])
    siblings = [dotted([*path[:-1], name]) for name in parent.model_fields] if parent else []
    keys = dict.fromkeys([*siblings, *(key for key, _ in leaves(root)), *root.model_fields])
    whole, last = dotted(path), str(path[-1])
    scores = {
        key: max(_ratio(whole, key) - 0.15, _ratio(last, key.rpartition(".")[2])) + 0.15 * (key in siblings)
        for key in keys
    }
    # without the bonus, so that what only lies nearby is no misspelling
    best = sorted(
        (key for key in keys if scores[key] - 0.15 * (key in siblings) >= _ALIKE), key=lambda key: -scores[key]
    )
    return [key for key in best[:2] if scores[key] > scores[best[0]] - 0.1]


def nearest_group(root: type[Config], path: Sequence[str | int]) -> str | None:
    """Return the group that the unknown key at `path`, which has fields of its own, may mean."""
    parent = class_at(root, path[:-1])
    groups = [name for name, field in parent.model_fields.items() if config_classes(field.annotation)] if parent else []
    near = nearest(str(path[-1]), groups)
    return dotted([*path[:-1], near]) if near else None


def dotted(path: Sequence[str | int]) -> str:
    """Return `path` as it is typed: objective.phases.0.fraction."""
    return ".".join(map(str, path))


def shown(value: Any) -> str:
    """Return `value` as it is typed on the command line, shortened and with the credentials of URLs redacted."""
    text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], redact(typed(value)))  # a message is one line
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for part in get_args(annotation) for found in _alternatives(part)]
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    return [annotation]


def _literal_values(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _ratio(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()
