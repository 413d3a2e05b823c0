"""Recipes: the settings that determine what an artifact contains, and their fingerprint."""

import hashlib
import json
from typing import Any

from modules.config import Config, Role, holds_groups


def identity(config: Config) -> dict[str, Any]:
    """Return the settings that determine the result, as plain data: every field that is marked `Identity`.

    A field that is marked `LaterIdentity` is left out at its default, so that what was made before keeps its recipe.
    A group of fields is a dict of its own, left out if it is empty; a list of groups is a list of dicts. The caller
    adds the identity of each `Input`, which can only be found by reading the input itself.
    """
    values = config.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            found |= {name: inside} if (inside := identity(value)) else {}
        elif Role.IDENTITY in field.metadata or (Role.LATER in field.metadata and value != field.default):
            found[name] = [identity(item) for item in value] if holds_groups(value) else values[name]
    return found


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return what is within nested dicts by dotted names; an empty dict is a value."""
    if isinstance(value, dict) and value:
        return {key: leaf for name, item in value.items() for key, leaf in flat(item, f"{path}.{name}").items()}
    return {path.removeprefix("."): value}


def fingerprint(recipe: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that identify a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
