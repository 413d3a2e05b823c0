"""The small JSON files in a run's folder: any of them may be damaged, and each message says which and what to do."""

import json
from typing import Any

from orchestrator.errors import DamagedFileError
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage


def read_object(storage: Storage, name: str, remedy: str) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where there is no such file.

    Args:
        remedy: What the user can do when the file is damaged.

    Raises:
        DamagedFileError: the file holds no JSON object.
    """
    try:
        content = json.loads(storage.read_bytes(name))
    except NotFoundError:
        return None
    except ValueError as error:
        raise DamagedFileError(f"{storage.url(name)}: damaged ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{storage.url(name)}: damaged (holds no JSON object); {remedy}")
    return content


def write_object(storage: Storage, name: str, content: dict[str, Any]) -> None:
    """Write a file that `read_object` reads."""
    storage.write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())
