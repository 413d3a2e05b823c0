"""The lease of a driver that is alive, which is this process."""

import socket
import time
from typing import Any

import psutil


def living_driver(**changes: Any) -> dict[str, Any]:
    """Return the fields of a lease, with `changes` over them."""
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "process_started": process.create_time(),
        "taken": time.time(),
        "renewed": time.time(),
        **changes,
    }
