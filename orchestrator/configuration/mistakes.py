"""Validation of the composed values, with a line for every mistake: path, value, rule and remedy."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from modules.config import Config
from orchestrator.configuration.rules import cross_group_mistakes
from orchestrator.configuration.schema import (
    class_at,
    dotted,
    explanation,
    field_at,
    nearest,
    nearest_group,
    nearest_keys,
    shown,
)
from orchestrator.errors import ConfigError

AnyConfig = TypeVar("AnyConfig", bound=Config)
Path = tuple[str | int, ...]

MISSING = "???"
"""Hydra's mark for a value that must be given."""

_RULES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text",
    "tuple": "must be a list, [a,b]",
    "list": "must be a list, [a,b]",
    "dict": "must be fields and values, {{field:value}}",
    "model": "must be fields and values, {{field:value}}",
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have {max_length} or fewer values",
    "string_too_short": "must not be empty",
    "string_too_long": "must have {max_length} or fewer characters",
    "string_pattern_mismatch": "must match {pattern}",
    "missing": "must be given",
}
"""pydantic's error types, or the part before their last underscore, in our words."""


def validated(raw: Mapping[str, Any], kind: type[AnyConfig], *, earlier: Sequence[str] = ()) -> AnyConfig:
    """Return the configuration that `raw` holds.

    Args:
        raw: composed values; MISSING marks those that must still be given.
        kind: the command's configuration class.
        earlier: mistakes that are known already, reported before those found here.

    Raises:
        ConfigError: with every mistake, one line each.
    """
    mistakes = [*earlier, *mistakes_in(raw, kind)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return kind.model_validate(raw)


def mistakes_in(raw: Mapping[str, Any], kind: type[Config], *, missing_too: bool = True) -> list[str]:
    """Return every mistake in `raw`, one line each, in the order of the fields."""
    missing = list(_missing(raw))
    if not missing and not _errors(raw, kind):  # of a thousand trials, nearly all
        return list(dict.fromkeys(cross_group_mistakes(kind.model_validate(raw))))
    lines = [_missing_line(path, kind) for path in missing] if missing_too else []
    unknown = [error for error in _errors(raw, kind) if error["type"] == "extra_forbidden"]
    # pydantic checks rules that join fields only in the absence of unknown fields
    known = _without(raw, {_path(error, raw) for error in unknown})
    errors = [error for error in _errors(known, kind) if _path(error, known) not in missing]
    lines += _lines(unknown, raw, kind) + _lines(errors, known, kind)
    return list(dict.fromkeys(lines + _cross_group(known, kind)))


def _errors(raw: Mapping[str, Any], kind: type[Config]) -> list[ErrorDetails]:
    try:
        kind.model_validate(raw)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _missing(value: Any, path: Path = ()) -> Iterator[Path]:
    if value == MISSING:
        yield path
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _missing(item, (*path, key))


def _missing_line(path: Path, kind: type[Config]) -> str:
    what = explanation(field_at(kind, path)).rstrip(".")
    return f"{dotted(path)}: must be given, as {dotted(path)}=VALUE" + (f" ({what})" if what else "")


def _cross_group(known: Mapping[str, Any], kind: type[Config]) -> list[str]:
    unusable = {str(error["loc"][0]) for error in _errors(known, kind)}
    ruled = next(base for base in kind.__mro__ if _has_a_default_for(unusable, base))
    usable = {name: group for name, group in known.items() if name in ruled.model_fields and name not in unusable}
    return cross_group_mistakes(ruled.model_validate(usable), unusable)


def _has_a_default_for(names: Collection[str], kind: type[Config]) -> bool:
    return not any(field.is_required() and name in names for name, field in kind.model_fields.items())


def _without(value: Any, paths: set[Path], path: Path = ()) -> Any:
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if (*path, key) not in paths}
        return {key: _without(item, paths, (*path, key)) for key, item in kept.items()}
    if isinstance(value, list):
        return [_without(item, paths, (*path, index)) for index, item in enumerate(value)]
    return value


def _lines(errors: list[ErrorDetails], raw: Mapping[str, Any], kind: type[Config]) -> list[str]:
    rules: dict[str, list[str]] = {}
    for error in _of_fitting_alternatives(errors, raw):
        subject, rule = _subject_and_rule(error, raw, kind)
        rules.setdefault(subject, []).append(rule)
    return [f"{subject}: {' or '.join(dict.fromkeys(found))}" for subject, found in rules.items()]


def _path(error: ErrorDetails, raw: Mapping[str, Any]) -> Path:
    """Return the path of the error in `raw`; pydantic's location also names the alternatives of a union."""
    path: Path = ()
    value: Any = raw
    for part in error["loc"]:
        if (isinstance(value, Mapping) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            path = (*path, part)
            value = _value(value, (part,))
        elif isinstance(value, Mapping) and part == error["loc"][-1] and error["type"] == "missing":
            path = (*path, part)
    return path


def _of_fitting_alternatives(errors: list[ErrorDetails], raw: Mapping[str, Any]) -> list[ErrorDetails]:
    """Drop pydantic's errors about the list form of a field that was given one value, and the reverse."""

    def fits(error: ErrorDetails) -> bool:
        tag = next((str(part) for part in error["loc"] if str(part).startswith(("tuple[", "constrained-"))), "")
        value = _value(raw, error["loc"][: error["loc"].index(tag)]) if tag else None
        return not tag or tag.startswith("tuple[") == isinstance(value, list)

    found = [error for error in errors if fits(error)]
    outer = {error["loc"][:length] for error in found for length in range(len(error["loc"]))}
    # pydantic drops invalid items, and then also reports the list as too short
    return [error for error in found if error["type"] != "too_short" or error["loc"] not in outer]


def _value(raw: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _subject_and_rule(error: ErrorDetails, raw: Mapping[str, Any], kind: type[Config]) -> tuple[str, str]:
    path = _path(error, raw)
    if error["type"] == "extra_forbidden":
        path = _to_the_leaf(raw, path)
        return f"{dotted(path)}={shown(_value(raw, path))}", _unknown_key(path, kind)
    if error["type"] in ("value_error", "assertion_error"):
        return _own_rule(str(error.get("ctx", {}).get("error", error["msg"])), path, raw)
    if error["loc"] and error["loc"][-1] == "[key]":
        return f"{dotted(path)}={shown(_value(raw, path))}", _choice("unknown; the names are", error, str(path[-1]))
    subject = dotted(path) if error["type"] == "missing" else f"{dotted(path)}={shown(error['input'])}"
    return subject, _rule(error)


def _to_the_leaf(raw: Mapping[str, Any], path: Path) -> Path:
    while isinstance(value := _value(raw, path), Mapping) and len(value) == 1:
        path = (*path, *value)
    return path


def _unknown_key(path: Path, kind: type[Config]) -> str:
    known = next(n for n, part in enumerate(path, 1) if isinstance(part, str) and field_at(kind, path[:n]) is None)
    group = nearest_group(kind, path[:known]) if known < len(path) else None
    if near := [group] if group else nearest_keys(kind, path[:known]) or nearest_keys(kind, path):
        return f"unknown; did you mean {' or '.join(near)}?"
    parent = class_at(kind, path[: known - 1])
    where = dotted(path[: known - 1]) or "the command"
    return f"unknown; {where} has {', '.join(parent.model_fields) if parent else 'no fields'}"


def _own_rule(message: str, path: Path, raw: Mapping[str, Any]) -> tuple[str, str]:
    """Return subject and rule of our own message, which may begin with the field and its value."""
    fields = _value(raw, path)
    start = re.match(r"(\w+)(?:[ =]|: )(.*)", message, re.DOTALL)
    if start and isinstance(fields, Mapping) and start[1] in fields:
        value = shown(fields[start[1]])
        rest = start[2]
        repeated = rest.startswith((f"{value} ", f"{value}:"))
        return f"{dotted((*path, start[1]))}={value}", rest.removeprefix(value).lstrip(": ") if repeated else rest
    subject = dotted(path) if isinstance(fields, Mapping) else f"{dotted(path)}={shown(fields)}"
    return subject, message


def _rule(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return _choice("must be one of", error, str(error["input"]))
    template = _RULES.get(error["type"]) or _RULES.get(error["type"].partition("_")[0])
    limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in error.get("ctx", {}).items()}
    return template.format(**limits) if template else error["msg"][:1].lower() + error["msg"][1:]


def _choice(rule: str, error: ErrorDetails, given: str) -> str:
    names = re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))
    near = nearest(given, names)
    return f"{rule} {', '.join(names)}" + (f"; did you mean {near}?" if near else "")
