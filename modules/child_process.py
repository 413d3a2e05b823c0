"""Child processes: their environment, in which they import the same modules, and their end with their parent."""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def child_environment(**overrides: str) -> dict[str, str]:
    """Return this process's environment with its import path in PYTHONPATH; `overrides` take precedence."""
    search_path = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return {**os.environ, "PYTHONPATH": search_path, **overrides}


def end_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the thread that started it ends; 0 takes that back.

    It holds on Linux alone. Processes that this one starts do not inherit it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)
