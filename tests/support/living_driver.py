"""The lease of a driver that is alive, which is this process."""

import os
import time
from dataclasses import asdict
from typing import Any

from orchestrator.runs.processes import ProcessId


def living_driver(**changes: Any) -> dict[str, Any]:
    """Return the fields of a lease, with `changes` over them."""
    times = {"taken": time.time(), "renewed": time.time()}
    return {"token": "another", **asdict(ProcessId.of(os.getpid())), **times, **changes}
