"""Wait for a result of another process or thread."""

import time
from collections.abc import Callable


def eventually(holds: Callable[[], object], seconds: float = 10) -> bool:
    """Return whether `holds()` becomes true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
