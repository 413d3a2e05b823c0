"""Recipes: the settings that decide what an artifact contains, and their fingerprint."""

import hashlib
import json
from typing import Any


def fingerprint(recipe: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
