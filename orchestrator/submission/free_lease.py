"""Waiting until the lease of a driver that was killed expires: the next attempt follows at once on the same machine."""

import time
from collections.abc import Callable

from orchestrator.runs.lease import EXPIRY_SECONDS, holder
from orchestrator.storage.store import Storage

_POLL_SECONDS = 2.0


def wait_until_free(root: str, run_name: str, say: Callable[[str], object]) -> None:
    """Wait while a run's lease is held and not renewed.

    One that is renewed belongs to a driver that lives: then the command itself refuses to run.

    Args:
        root: The storage root.
        run_name: The run.
        say: Receives a line if there is something to wait for.
    """
    storage = Storage(root)
    first = holder(storage, run_name)
    if first is None:
        return
    say(
        f"process {first['pid']} on {first['host']} still holds the run {run_name}; if it was killed, its lease ends "
        f"within {EXPIRY_SECONDS:g} s, and this job goes on then"
    )
    while True:
        time.sleep(_POLL_SECONDS)
        now = holder(storage, run_name)
        if now is None or now["renewed"] != first["renewed"]:
            return
