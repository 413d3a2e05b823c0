"""Fresh interpreters that import what this process does, however it has found it."""

import os
import sys
from pathlib import Path


def child_environment(**others: str) -> dict[str, str]:
    """Return this process's environment with its import path, and `others` over it."""
    search_path = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return {**os.environ, "PYTHONPATH": search_path, **others}
