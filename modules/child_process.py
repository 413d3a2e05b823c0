"""The environment of child interpreters, which must import the same modules as this process."""

import os
import sys
from pathlib import Path


def child_environment(**overrides: str) -> dict[str, str]:
    """Return this process's environment with its import path in PYTHONPATH; `overrides` take precedence."""
    search_path = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return {**os.environ, "PYTHONPATH": search_path, **overrides}
